"""Requests and answers by files of a batch interface."""

import collections
import json

import fake_server
import pipeline_runs
import pytest
from asking import write_questions
from pipeline_runs import check_whole, lines

from mirg_jax.data.image_hashes import ImageHashes
from mirg_jax.errors import ConfigError, UserError
from mirg_jax.trajectories import batches, build, settings

config = pipeline_runs.config


def provider(path, server_answers, leave_out=()):
    """Writes the file of answers that a batch interface returns for a file of requests."""
    rows = lines(path)
    given = []
    for n, row in enumerate(rows):
        assert row["method"] == "POST" and row["url"] == "/v1/chat/completions"
        text = server_answers(row["body"]["messages"][0]["content"][-1]["text"], "good")
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1000, "completion_tokens": 100}
        body = {"choices": [choice], "usage": usage}
        given.append(
            {"custom_id": row["custom_id"], "response": {"status_code": 200, "body": body}}
        )
        if n in leave_out:
            given[-1]["response"] = {"status_code": 500, "body": {"error": "oh"}}
    del given[len(given) - (n > 20) :]  # and one is missing
    text = "".join(json.dumps(row) + "\n" for row in given[::-1])
    path.with_suffix(".answers.jsonl").write_text(text)
    return len(rows)


def test_batch_files_go_round_by_round(config, tmp_path, monkeypatch):
    source = write_questions(tmp_path / "data", 28)
    how = config("http://127.0.0.1:9/v1", **{"stages.mapping.model": "other"})
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setattr(batches, "MAX_REQUESTS", 25)
    what = {"source": str(source), "image_root": str(source.parent), "output_dir": tmp_path / "out"}
    written, rounds = collections.Counter(), 0
    while True:
        result = build.batch(settings.read(how), **what)
        if not result.files:
            break
        rounds += 1
        # Requests that the provider has are not written again.
        again = build.batch(settings.read(how), **what)
        assert not again.files and again.waiting == sum(len(lines(path)) for path in result.files)
        for path in result.files:
            assert len(lines(path)) <= 25
            assert len({row["body"]["model"] for row in lines(path)}) == 1
            written[path.stem.split("-")[0]] += provider(path, fake_server.answer, leave_out={1})
    # One of each file came back as an error, and one of each large file not at all.
    assert rounds > 3 and result.waiting == 0
    assert all(28 < count < 40 for count in written.values())
    accepted, rejected = check_whole(tmp_path / "out", 28)
    assert len(accepted) == 28
    spent = sum(row.get("dollars", 0) for row in lines(tmp_path / "out/replies.jsonl")
                if "reply" in row)  # fmt: skip
    assert spent == pytest.approx(28 * 2 * 0.0035)
    left = build.dry_run(settings.read(how), **what)
    assert left.dollars == 0 and left.spent == pytest.approx(spent)

    how.max_dollars = 0.05
    capped = build.batch(settings.read(how), **what | {"output_dir": tmp_path / "capped"})
    assert capped.capped > 0 and sum(len(lines(path)) for path in capped.files) > 0
    (tmp_path / "capped/batches/reasoning-0001.answers.jsonl").write_text("{")
    with pytest.raises(UserError, match="answers.jsonl line 1: not a line of a batch file"):
        build.batch(settings.read(how), **what | {"output_dir": tmp_path / "capped"})
    with pytest.raises(ConfigError, match="must be openai"):
        build.batch(settings.read(config("", **{"stages.mapping.teacher": "scenes"})), **what)


def test_files_of_an_earlier_version_are_gone_on_with(config, tmp_path, monkeypatch):
    source = write_questions(tmp_path / "data", 7)
    how = settings.read(config("http://127.0.0.1:9/v1"))
    what = {"source": str(source), "image_root": str(source.parent), "output_dir": tmp_path / "out"}
    with monkeypatch.context() as patch:  # which named requests without their images
        patch.setattr(ImageHashes, "of", lambda self, paths: "")
        (first,) = build.batch(how, **what).files
    again = build.batch(how, **what)
    assert not again.files and again.waiting == 7
    provider(first, fake_server.answer)
    result = build.batch(how, **what)
    assert result.waiting == 0 and [path.name for path in result.files] == ["mapping-0001.jsonl"]
    assert len(lines(result.files[0])) == 7


def test_answers_of_other_requests_are_refused_and_late_ones_taken(
    config, tmp_path, monkeypatch, capsys
):
    source = write_questions(tmp_path / "data", 7)
    how = settings.read(config("http://127.0.0.1:9/v1"))
    what = {"source": str(source), "image_root": str(source.parent), "output_dir": tmp_path / "out"}
    (first,) = build.batch(how, **what).files
    answers = first.with_suffix(".answers.jsonl")
    for other in ("", '{"custom_id": "of another file", "response": {"status_code": 200}}\n'):
        answers.write_text(other)
        with pytest.raises(UserError, match=f"holds none of the 7 requests of {first.name}"):
            build.batch(how, **what)
    provider(first, fake_server.answer)
    whole = answers.read_text()
    answers.write_text("".join(whole.splitlines(keepends=True)[:4]))  # a download that was cut
    again = build.batch(how, **what).files
    assert "lacks 3 of 7 requests, which are written again" in capsys.readouterr().err
    (second,) = (path for path in again if path.name == "reasoning-0002.jsonl")
    assert len(lines(second)) == 3
    answers.write_text(whole)  # the second file was never sent
    result = build.batch(how, **what)
    assert result.waiting == 4 and sum(len(lines(path)) for path in result.files) == 3
