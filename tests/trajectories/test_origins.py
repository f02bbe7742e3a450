"""Where answers came from: servers, the models that they name, and what was asked of them."""

import json
import shutil

import fake_server
import pipeline_runs
import pytest
from asking import write_questions
from pipeline_runs import check_whole, lines, run
from test_batches import provider

from mirg_jax.trajectories import build, settings
from mirg_jax.trajectories import prompts as package
from mirg_jax.trajectories.prompts import STAGES
from mirg_jax.trajectories.shards import Shard

config, server = pipeline_runs.config, pipeline_runs.server
PROVENANCE = ("server", "model")


@pytest.fixture
def told(capsys):
    """Returns the lines of stderr with some words since it was called last."""
    return lambda words: [line for line in capsys.readouterr().err.splitlines() if words in line]


def test_servers_are_recorded_and_another_one_is_told(server, config, tmp_path, told):
    source, folder = write_questions(tmp_path / "data", 14), tmp_path / "out"
    first, second = server(), server()
    secret = first.url.replace("//", "//me:pa55word@") + "?api_key=pa55word"
    run(config(secret), folder, source, shard=Shard(0, 2))
    summary = json.loads((folder / "shard-0-of-2/summary.json").read_text())["stages"]
    (address,) = summary["reasoning"]["servers"]
    assert first.url.rstrip("/") in address
    assert all(summary[stage]["servers"] == {address: 7} for stage in STAGES)
    assert told("answers so far") == []
    result = run(config(second.url), folder, source)
    said = told("answers so far are of")
    assert sorted(line.split(":")[0] for line in said) == sorted(STAGES)
    found = result.summary["stages"]["mapping"]["servers"]
    assert found.pop(address) == 7 and list(found.values()) == [7]
    assert f"of {address}, further ones of {next(iter(found))};" in said[0]
    run(config(first.url), folder, source)  # asks nothing
    assert told("answers so far") == [] and len(first.requests()) == len(second.requests()) == 21
    for path in folder.rglob("*.*"):
        assert path.is_dir() or b"pa55word" not in path.read_bytes()
    # Where answers of an earlier version came from is not known, and they count.
    for path in folder.glob("replies*.jsonl"):
        rows = [{k: v for k, v in row.items() if k not in PROVENANCE} for row in lines(path)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    last = run(config(second.url), folder, source).summary["stages"]
    assert len(first.requests()) == len(second.requests()) == 21
    assert last["mapping"]["servers"] == last["mapping"]["models"] == {}
    assert told("answers so far") == []
    check_whole(folder, 14)


def test_a_model_that_was_not_asked_for_is_counted_and_told_once(server, config, tmp_path, told):
    source, folder = write_questions(tmp_path / "data", 7), tmp_path / "out"
    routed = server("--model=cheap/model")
    same = {f"stages.{stage}.model": "some/model" for stage in STAGES}
    summary = run(config(routed.url, **same), folder, source).summary["stages"]
    (line,) = told("asked for 'some/model', answers as 'cheap/model'")
    assert routed.url.rstrip("/") in line
    assert all(summary[stage]["models"] == {"cheap/model": 7} for stage in STAGES)
    assert "cheap/model" in (folder / "report.html").read_text()
    honest = server()
    summary = run(config(honest.url, **same), tmp_path / "other", source).summary["stages"]
    assert told("asked for") == []
    assert all(summary[stage]["models"] == {"some/model": 7} for stage in STAGES)
    assert summary["mapping"]["asked"]["teacher"]["model"] == "some/model"


def test_a_model_that_was_not_asked_for_is_told_of_batch_files(config, tmp_path, told):
    source, folder = write_questions(tmp_path / "data", 7), tmp_path / "out"
    what = {"source": str(source), "image_root": str(source.parent), "output_dir": folder}
    how = settings.read(config("http://127.0.0.1:9/v1"))
    (file,) = build.batch(how, **what).files
    provider(file, fake_server.answer)
    answers = file.with_suffix(".answers.jsonl")
    rows = lines(answers)
    for row in rows:
        row["response"]["body"]["model"] = "gpt-4o-2024-08-06"
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = build.batch(how, **what).summary["stages"]["reasoning"]
    assert stage["models"] == {"gpt-4o-2024-08-06": 7} and stage["servers"] == {}
    (line,) = told("answers as")
    assert line.startswith("reasoning, by the files in ") and "asked for 'gpt-4o'" in line


def test_the_summary_says_what_was_asked(config, tmp_path):
    source = write_questions(tmp_path / "data", 7)
    what = {"source": str(source), "image_root": str(source.parent)}

    def asked(name, **changes):
        how = settings.read(config("http://127.0.0.1:9/v1", **changes))
        summary = build.batch(how, **what, output_dir=tmp_path / name).summary
        return {stage: json.dumps(row["asked"]) for stage, row in summary["stages"].items()}

    prompts = tmp_path / "prompts"
    shutil.copytree(package.__file__.removesuffix(".py"), prompts)
    text = (prompts / "mapping/diff.txt").read_text()
    (prompts / "mapping/diff.txt").write_text(text + " Look twice.")
    before = asked("before")
    assert before == asked("again")
    changes = {
        "stages.mapping.temperature": 0.5, "stages.mapping.max_tokens": 99, "max_pixels": 10_000,
        "stages.mapping.model": "other", "prompts": str(prompts),
    }  # fmt: skip
    for number, (name, value) in enumerate(changes.items()):
        now = asked(str(number), **{name: value})
        others = {stage for stage in STAGES if now[stage] != before[stage]}
        assert others == (set(STAGES) if name == "max_pixels" else {"mapping"})
