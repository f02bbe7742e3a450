"""The pipeline against a server that gives bad answers, over real HTTP."""

import collections
import json
import shutil

import pipeline_runs
import pytest
from asking import KEY, write_questions
from PIL import Image
from pipeline_runs import check_whole, lines, run

from mirg_jax.errors import ConfigError, DataError, UserError
from mirg_jax.trajectories import build, settings
from mirg_jax.trajectories.journal import Journal

config, server = pipeline_runs.config, pipeline_runs.server


def test_good_answers_cost_three_requests_each(server, config, tmp_path):
    source = write_questions(tmp_path / "data", 21)
    fake = server()
    result = run(config(fake.url), tmp_path / "out", source)
    assert not result.stopped
    accepted, rejected = check_whole(tmp_path / "out", 21)
    assert not rejected and len(fake.requests()) == 63
    assert len(set(fake.requests())) == 63
    summary = result.summary["stages"]
    assert summary["mapping"]["prompt_tokens"] == 21_000
    assert summary["reasoning"]["dollars"] == pytest.approx(21 * (1000 * 2.5 + 100 * 10) / 1e6)

    # Running again sends no request and changes no file.
    outputs = {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.*")}
    run(config(fake.url), tmp_path / "out", source)
    assert len(fake.requests()) == 63
    assert outputs == {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.*")}


def test_a_fifth_of_bad_answers_loses_no_question(server, config, tmp_path):
    source = write_questions(tmp_path / "data", 210)
    fake = server("--bad=0.2")
    run(config(fake.url, timeout=1.0), tmp_path / "out", source)
    accepted, rejected = check_whole(tmp_path / "out", 210)
    assert len(accepted) > 190
    fates = collections.Counter(fate for _, fate in fake.requests())
    assert len(fates) == 17  # every flaw, and none
    # Refused answers are listed with stage, try and reason.
    refused = lines(tmp_path / "out" / "refused.jsonl")
    assert {row["stage"] for row in refused} == {"reasoning", "mapping", "reassembly"}
    reasons = " ".join(reason for row in refused for reason in row["reasons"])
    for part in "refused|no choice|cut at|filtered|not a box on|know the".split("|"):
        assert part in reasons
    # No request was sent again after its answer had arrived.
    journal = lines(tmp_path / "out" / "replies.jsonl")
    answered = [row["reply"] for row in journal if "reply" in row]
    assert len(answered) == len(set(answered))
    asked = collections.Counter(key for key, _ in fake.requests())
    lost = collections.Counter(row["lost"] for row in journal if "lost" in row)
    # On a busy machine the time limit of a request may end before the server has seen it.
    late = collections.Counter(
        row["lost"] for row in journal if row.get("reason") == "no answer within 1 s"
    )
    assert late  # the server's slow answers
    assert all(lost[key] + 1 - late[key] <= asked[key] <= lost[key] + 1 for key in answered)
    run(config(fake.url, timeout=1.0), tmp_path / "out", source)
    assert sum(asked.values()) == len(fake.requests())


@pytest.mark.parametrize(
    ("flaw", "reason"),
    [
        ("wrong ids", "[9-9]"),
        ("leak", "know the answer: 'as given'"),
        ("prose", "text outside the think and answer blocks"),
    ],
)
def test_an_answer_is_asked_for_again_until_it_is_good(server, config, tmp_path, flaw, reason):
    source = write_questions(tmp_path / "data", 28)
    fake = server("--bad=0.6", f"--flaws={flaw}")
    result = run(config(fake.url, tries=2), tmp_path / "out", source)
    accepted, rejected = check_whole(tmp_path / "out", 28)
    assert accepted and rejected
    refused = [row for row in lines(tmp_path / "out/refused.jsonl") if row["stage"] == "reassembly"]
    assert all(any(reason in said for said in row["reasons"]) for row in refused)
    # A question is rejected after two refused answers of a stage, but not after one.
    twice = {row["id"] for row in refused if row["try"] == 2}
    assert {row["id"] for row in rejected} >= twice
    assert {row["id"] for row in refused} - twice <= {example.id for example in accepted}
    stage = result.summary["stages"]["reassembly"]
    assert stage["refused"] == len(refused) == sum(stage["reasons"].values())


def test_unreadable_images_are_rejected(server, config, tmp_path):
    source = write_questions(tmp_path / "data", 24)
    (tmp_path / "data/images/3.jpg").write_bytes(b"no picture")
    fake = server()
    run(config(fake.url), tmp_path / "out", source)
    _, rejected = check_whole(tmp_path / "out", 24)
    assert len(rejected) == 2
    assert all("not an image" in row["reason"] for row in rejected)


def test_answers_are_about_the_images_that_were_sent(server, config, tmp_path, capsys, monkeypatch):
    source, folder = write_questions(tmp_path / "data", 7), tmp_path / "out"
    fake = server()
    run(config(fake.url), folder, source)
    check_whole(folder, 7)
    asked, whole = len(fake.requests()), (folder / "grounded.jsonl").read_text()
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "data", moved)
    run(config(fake.url), folder, source, image_root=moved)  # the same images elsewhere
    assert len(fake.requests()) == asked
    Image.new("RGB", (48, 48)).save(moved / "images/0.jpg")  # of one question
    run(config(fake.url), folder, source, image_root=moved)
    assert len(fake.requests()) == asked + 3
    run(config(fake.url), folder, source)  # the first answer is still there
    assert len(fake.requests()) == asked + 3
    # Images that have gone leave the answers as they are.
    (moved / "images").rename(tmp_path / "elsewhere")
    run(config(fake.url), folder, source, image_root=moved)
    assert len(fake.requests()) == asked + 3
    check_whole(folder, 7)
    assert "earlier version" not in capsys.readouterr().err

    # As earlier versions filed them: by samples of the images, and without the images.
    journal = folder / "replies.jsonl"
    rows = [row for row in lines(journal) if "reply" in row][:asked]
    requests, find = {}, Journal.find
    with monkeypatch.context() as patch:

        def noted(self, request):
            requests[request.key] = request
            return find(self, request)

        patch.setattr(Journal, "find", noted)
        run(config(fake.url), folder, source)
    samples = [row | {"reply": requests[row["reply"]].key_by_samples} for row in rows]
    assert not {row["reply"] for row in samples} & requests.keys()
    journal.write_text("".join(json.dumps(row) + "\n" for row in samples))
    run(config(fake.url), folder, source)
    assert len(fake.requests()) == asked + 3
    assert "earlier version" not in capsys.readouterr().err
    earlier = [row | {"reply": row.pop("by_name")} for row in rows]
    journal.write_text("".join(json.dumps(row) + "\n" for row in earlier))
    run(config(fake.url), folder, source)
    assert len(fake.requests()) == asked + 3
    assert (folder / "grounded.jsonl").read_text() == whole
    assert capsys.readouterr().err.count("has answers of an earlier version") == 1


def test_outputs_that_cannot_be_written_are_one_line(server, config, tmp_path):
    source, folder = write_questions(tmp_path / "data", 3), tmp_path / "out"
    (folder / "rejected.jsonl").mkdir(parents=True)
    fake = server()
    with pytest.raises(
        DataError, match="out: can't be written .*rejected.jsonl.*no answer is lost"
    ):
        run(config(fake.url), folder, source)
    (folder / "rejected.jsonl").rmdir()
    run(config(fake.url), folder, source)
    check_whole(folder, 3)
    assert len(fake.requests()) == 9


def test_shards_merge(server, config, tmp_path):
    source = write_questions(tmp_path / "data", 50)
    fake = server("--bad=0.1")
    whole = tmp_path / "whole"
    for index in range(3):
        result = run(
            config(fake.url, timeout=1.0),
            tmp_path / f"machine{index}",
            source,
            shard=build.Shard(index, 3),
        )
        assert result.summary["questions"] == (17, 17, 16)[index]
    asked = len(fake.requests())
    whole.mkdir()
    for index in range(3):
        (journal,) = (tmp_path / f"machine{index}").glob("replies*.jsonl")
        journal.rename(whole / journal.name)
    run(config(fake.url, timeout=1.0), whole, source)
    check_whole(whole, 50)
    assert len(fake.requests()) == asked

    for text in ("3/3", "1", "a/b", "-1/2", "1/0"):
        with pytest.raises(ConfigError, match="--shard"):
            build.Shard.parse(text)
    assert build.Shard.parse("1/4") == (1, 4)


def test_dry_run_says_what_a_run_then_takes(server, config, tmp_path, monkeypatch):
    source = write_questions(tmp_path / "data", 42)
    fake = server()
    how = config(fake.url)
    what = {"source": str(source), "image_root": str(source.parent), "output_dir": tmp_path / "out"}
    monkeypatch.delenv("OPENAI_API_KEY")
    before = build.dry_run(settings.read(how), **what)
    assert not fake.requests()
    assert [stage.requests for stage in before.stages.values()] == [42] * 3
    assert [stage.most for stage in before.stages.values()] == [126] * 3
    assert before.most_dollars == pytest.approx(3 * before.dollars)
    assert 0.1 < before.dollars < 1 and before.stages["mapping"].dollars == 0
    assert "42 questions" in str(before)

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    how.max_dollars = 0.2
    stopped = run(how, tmp_path / "out", source)
    after = build.dry_run(settings.read(how), **what)
    done = [stage["answers"] for stage in stopped.summary["stages"].values()]
    assert [stage.requests for stage in after.stages.values()] == [42 - n for n in done]
    # Prices now follow from the tokens measured.
    left = after.stages["reassembly"]
    assert left.dollars == pytest.approx(left.requests * 0.0035)
    assert after.spent == pytest.approx(sum(done[::2]) * 0.0035)


def test_other_prompts_are_other_requests(server, config, tmp_path):
    source = write_questions(tmp_path / "data", 14)
    fake = server()
    run(config(fake.url), tmp_path / "out", source)
    run(config(fake.url, **{"stages.reassembly.temperature": 0.5}), tmp_path / "out", source)
    assert len(fake.requests()) == 42 + 14
    # Another selection needs another folder.
    with pytest.raises(UserError, match="chosen otherwise"):
        run(config(fake.url, seed=5), tmp_path / "out", source)


def test_one_process_at_a_time(server, config, tmp_path):
    source = write_questions(tmp_path / "data", 7)
    fake = server()
    held = Journal(tmp_path / "out", "replies.jsonl", write=True)
    with pytest.raises(ConfigError, match="another process writes"):
        run(config(fake.url), tmp_path / "out", source)
    held.close()
    run(config(fake.url), tmp_path / "out", source)


def test_servers_and_keys_come_from_the_environment(server, config, tmp_path, monkeypatch):
    source = write_questions(tmp_path / "data", 7)
    first, second = server(), server()
    how = config("", **{"stages.mapping.key_variable": "OTHER_KEY"})
    how.stages.mapping.base_url = second.url
    monkeypatch.setenv("OPENAI_BASE_URL", first.url)
    with pytest.raises(ConfigError, match="OTHER_KEY is not set"):
        run(how, tmp_path / "out", source)
    monkeypatch.setenv("OTHER_KEY", "another")
    run(how, tmp_path / "out", source)
    assert (len(first.requests()), len(second.requests())) == (14, 7)


def test_no_key_is_one_line(server, config, tmp_path, monkeypatch):
    source = write_questions(tmp_path / "data", 7)
    how = config("http://127.0.0.1:9/v1")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is not set"):
        run(how, tmp_path / "out", source)
