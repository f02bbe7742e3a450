"""The pipeline against a server that misbehaves, over real HTTP."""

import collections
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import fake_server
import numpy as np
import pytest
from asking import KEY, Server, serve, write_questions
from conftest import REPOSITORY

from mirg_jax.data.examples import read_examples
from mirg_jax.errors import ConfigError, UserError
from mirg_jax.grounding.grammar import parse_response
from mirg_jax.trajectories import batches, build, settings


@pytest.fixture
def server(tmp_path):
    with contextlib.ExitStack() as stack:

        def start(*flags: str) -> Server:
            log = tmp_path / f"server{len(list(tmp_path.glob('server*.log')))}.log"
            return stack.enter_context(serve(log, *flags))

        yield start


@pytest.fixture
def config(monkeypatch):
    """Settings that ask one server in every stage, fast."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def make(url: str, **changes):
        config = settings.trajectories()
        config.select.sft = 0
        config.concurrency = 16
        config.backoff = 0.01
        for stage in config.stages.values():
            stage.base_url = url
            stage.key_variable = "OPENAI_API_KEY"
            stage.timeout = 1.0
            stage.update(requests_per_minute=0.0, tokens_per_minute=0.0)
        config.update_from_flattened_dict(changes)
        return config

    return make


def run(config, folder, source, **changes):
    what = {"source": str(source), "image_root": str(source.parent), "progress": False} | changes
    return build.build(config, output_dir=folder, **what)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_whole(folder, count):
    """Every question is in one list or the other, once, and what is accepted is sound."""
    accepted, bad = read_examples(folder / "grounded.jsonl")
    rejected = lines(folder / "rejected.jsonl")
    assert not bad
    names = [e.id for e in accepted] + [row["id"] for row in rejected]
    assert len(names) == len(set(names)) == count
    assert all(row["reason"] for row in rejected)
    for example in accepted:
        response = parse_response(example.response, len(example.images))
        assert response.format_ok and not response.problems
        assert [(o.image, o.box) for o in response.objects] == [
            (t.image, t.box) for t in example.targets
        ]
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["accepted"], summary["rejected"]) == (len(accepted), len(rejected))
    assert summary["unfinished"] == 0
    return accepted, rejected


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

    # Again: nothing is asked, and nothing changes.
    outputs = {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.*")}
    run(config(fake.url), tmp_path / "out", source)
    assert len(fake.requests()) == 63
    assert outputs == {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.*")}


def test_a_fifth_of_bad_answers_loses_no_question(server, config, tmp_path):
    source = write_questions(tmp_path / "data", 210)
    fake = server("--bad=0.2")
    run(config(fake.url), tmp_path / "out", source)
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
    # An answer that was there was asked for once.
    journal = lines(tmp_path / "out" / "replies.jsonl")
    answered = [row["reply"] for row in journal if "reply" in row]
    assert len(answered) == len(set(answered))
    asked = collections.Counter(key for key, _ in fake.requests())
    lost = collections.Counter(row["lost"] for row in journal if "lost" in row)
    assert all(asked[key] == lost[key] + 1 for key in answered)
    run(config(fake.url), tmp_path / "out", source)
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
    # Two refused answers of a stage are the end of a question, one is not.
    twice = {row["id"] for row in refused if row["try"] == 2}
    assert {row["id"] for row in rejected} >= twice
    assert {row["id"] for row in refused} - twice <= {example.id for example in accepted}
    stage = result.summary["stages"]["reassembly"]
    assert stage["refused"] == len(refused) == sum(stage["reasons"].values())


def command(config_flags, folder, source, *flags):
    return [
        sys.executable,
        REPOSITORY / "scripts/build_trajectories.py",
        f"--config={REPOSITORY}/configs/trajectories.py:mgrounding",
        f"--input={source}",
        f"--image_root={source.parent}",
        f"--output_dir={folder}",
        *config_flags,
        *flags,
    ]


def flags_for(url):
    flags = ["--config.select.sft=0", "--config.backoff=0.01", "--config.concurrency=16"]
    for stage in ("reasoning", "mapping", "reassembly"):
        flags.append(f"--config.stages.{stage}.base_url={url}")
        flags.append(f"--config.stages.{stage}.requests_per_minute=0.0")
        flags.append(f"--config.stages.{stage}.tokens_per_minute=0.0")
        flags.append(f"--config.stages.{stage}.timeout=1.0")
    return flags


@pytest.mark.parametrize(
    ("count", "kills"), [(105, 2), pytest.param(1000, 10, marks=pytest.mark.slow)]
)
def test_killed_runs_go_on_and_pay_nothing_twice(server, config, tmp_path, count, kills):
    source = write_questions(tmp_path / "data", count)
    fake = server("--bad=0.2", "--delay=0.02")
    folder = tmp_path / "out"
    journal = folder / "replies.jsonl"
    config(fake.url)  # sets the key
    all_flags = command(flags_for(fake.url), folder, source)

    def answered():
        if not journal.exists():
            return set()
        text = journal.read_bytes()
        rows = map(json.loads, text[: text.rfind(b"\n") + 1].splitlines())
        return {row["reply"] for row in rows if "reply" in row}

    for n in range(1, kills + 1):
        known, before = answered(), len(fake.requests())
        process = subprocess.Popen(all_flags, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        enough = 3 * count * n // (kills + 1)
        deadline = time.monotonic() + 120
        while len(answered()) < enough and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not known & {key for key, _ in fake.requests()[before:]}
    known, before = answered(), len(fake.requests())
    ended = subprocess.run(all_flags, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert not known & {key for key, _ in fake.requests()[before:]}
    accepted, _ = check_whole(folder, count)
    assert len(accepted) > 0.9 * count
    # What was in flight when the process was killed is all that was answered twice.
    good = collections.Counter(key for key, fate in fake.requests() if fate == "good")
    assert sum(n - 1 for n in good.values()) <= kills * 16

    before = len(fake.requests())
    again = subprocess.run(all_flags, capture_output=True, text=True)
    assert again.returncode == 0 and len(fake.requests()) == before
    # The key is nowhere.
    assert KEY not in ended.stdout + ended.stderr
    for path in folder.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


def test_a_stop_signal_loses_no_answer(server, config, tmp_path):
    source = write_questions(tmp_path / "data", 42)
    fake = server("--delay=0.3")
    config(fake.url)
    folder = tmp_path / "out"
    process = subprocess.Popen(
        command(flags_for(fake.url), folder, source), stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not (folder / "replies.jsonl").exists() or len(fake.requests()) < 20:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped: SIGTERM" in out
    replies = [row for row in lines(folder / "replies.jsonl") if "reply" in row]
    assert len(replies) == len(fake.requests()) < 126
    assert json.loads((folder / "summary.json").read_text())["unfinished"] > 0


def test_a_stop_signal_ends_every_wait(server, config, tmp_path):
    source = write_questions(tmp_path / "data", 42)
    fake = server("--bad=1", "--flaws=429 long")
    config(fake.url)
    process = subprocess.Popen(
        command(flags_for(fake.url), tmp_path / "out", source), stderr=subprocess.DEVNULL
    )
    while len(fake.requests()) < 3:
        time.sleep(0.02)
    time.sleep(0.5)
    asked = len(fake.requests())
    assert asked <= 16  # the first answer holds back all others
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    assert len(fake.requests()) == asked


def test_spending_stops_at_the_cap_and_goes_on(server, config, tmp_path):
    source = write_questions(tmp_path / "data", 42)
    fake = server("--delay=0.01")
    one = (1000 * 2.5 + 100 * 10) / 1e6  # as the server counts
    changes = {"max_dollars": 30 * one, "stages.mapping.prompt_price": 2.5}
    changes |= {f"stages.{s}.max_tokens": 200 for s in ("reasoning", "mapping", "reassembly")}
    changes["stages.mapping.completion_price"] = 10.0
    how = config(fake.url, **changes)
    result = run(how, tmp_path / "out", source)
    assert "max_dollars" in result.stopped
    spent = sum(stage["dollars"] for stage in result.summary["stages"].values())
    # Up to what the next request might have cost, and no further.
    most = (2600 * 2.5 + 200 * 10) / 1e6
    assert 30 * one - most < spent <= 30 * one
    assert result.summary["unfinished"] > 0
    asked = len(fake.requests())
    assert "max_dollars" in run(how, tmp_path / "out", source).stopped
    assert len(fake.requests()) == asked
    how.max_dollars = 0.0
    assert not run(how, tmp_path / "out", source).stopped
    check_whole(tmp_path / "out", 42)
    assert len(fake.requests()) == 126


def test_what_may_have_been_paid_counts(server, config, tmp_path):
    source = write_questions(tmp_path / "data", 7)
    fake = server("--bad=1.0", "--flaws=cut")
    how = config(fake.url, max_dollars=0.5, retries=1000)
    result = run(how, tmp_path / "out", source)
    assert "max_dollars" in result.stopped
    lost = [row["dollars"] for row in lines(tmp_path / "out" / "replies.jsonl") if "lost" in row]
    assert 0.3 < sum(lost) <= 0.5 and len(lost) == len(fake.requests())


def test_a_server_that_is_down_ends_the_run_and_rejects_nothing(server, config, tmp_path):
    source = write_questions(tmp_path / "data", 21)
    how = config("http://127.0.0.1:9/v1", retries=2)
    with pytest.raises(UserError, match="no request is answered .*run again to go on"):
        run(how, tmp_path / "out", source)
    assert (tmp_path / "out/rejected.jsonl").read_text() == ""
    fake = server()
    run(config(fake.url), tmp_path / "out", source)
    check_whole(tmp_path / "out", 21)


def test_a_request_that_is_never_answered_is_given_up(server, config, tmp_path):
    source = write_questions(tmp_path / "data", 70)
    fake = server("--bad=0.3", "--flaws=500")
    run(config(fake.url, retries=1), tmp_path / "out", source)
    _, rejected = check_whole(tmp_path / "out", 70)
    assert rejected and all("HTTP 500" in row["reason"] for row in rejected)
    asked = len(fake.requests())
    run(config(fake.url), tmp_path / "out", source)
    assert len(fake.requests()) == asked
    run(config(fake.url), tmp_path / "out", source, retry_failed=True)
    accepted, _ = check_whole(tmp_path / "out", 70)
    assert len(accepted) > 70 - len(rejected)


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_server_that_refuses_everything(server, config, tmp_path, status):
    source = write_questions(tmp_path / "data", 42)
    fake = server(f"--status={status}")
    with pytest.raises(UserError, match=f"HTTP {status}: .*\\[key\\]") as caught:
        run(config(fake.url), tmp_path / "out", source)
    assert KEY not in str(caught.value) and "\n" not in str(caught.value)
    assert len(fake.requests()) <= 16 + 3
    assert (tmp_path / "out/rejected.jsonl").read_text() == ""
    assert KEY not in (tmp_path / "out/replies.jsonl").read_text()


def test_a_stage_whose_server_refuses_everything(server, config, tmp_path):
    source = write_questions(tmp_path / "data", 42)
    good, bad = server(), server("--status=422")
    how = config(good.url, **{"stages.mapping.base_url": bad.url})
    with pytest.raises(UserError, match="^mapping: .*HTTP 422"):
        run(how, tmp_path / "out", source)
    assert (tmp_path / "out/rejected.jsonl").read_text() == ""
    how.stages.mapping.base_url = good.url
    run(how, tmp_path / "out", source)
    check_whole(tmp_path / "out", 42)
    assert len(good.requests()) == 126


def test_a_request_that_the_server_refuses(server, config, tmp_path):
    source = write_questions(tmp_path / "data", 70)
    fake = server("--bad=0.1", "--flaws=400")
    run(config(fake.url), tmp_path / "out", source)
    _, rejected = check_whole(tmp_path / "out", 70)
    assert rejected and all("HTTP 400" in row["reason"] for row in rejected)
    asked = len(fake.requests())
    run(config(fake.url), tmp_path / "out", source)
    assert len(fake.requests()) == asked


def test_unreadable_images_are_rejected(server, config, tmp_path):
    source = write_questions(tmp_path / "data", 24)
    (tmp_path / "data/images/3.jpg").write_bytes(b"no picture")
    fake = server()
    run(config(fake.url), tmp_path / "out", source)
    _, rejected = check_whole(tmp_path / "out", 24)
    assert len(rejected) == 2
    assert all("not an image" in row["reason"] for row in rejected)


def test_shards_merge(server, config, tmp_path):
    source = write_questions(tmp_path / "data", 50)
    fake = server("--bad=0.1")
    whole = tmp_path / "whole"
    for index in range(3):
        result = run(
            config(fake.url), tmp_path / f"machine{index}", source, shard=build.Shard(index, 3)
        )
        assert result.summary["questions"] == (17, 17, 16)[index]
    asked = len(fake.requests())
    whole.mkdir()
    for index in range(3):
        (journal,) = (tmp_path / f"machine{index}").glob("replies*.jsonl")
        journal.rename(whole / journal.name)
    run(config(fake.url), whole, source)
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
    before = build.dry_run(how, **what)
    assert not fake.requests()
    assert [stage.requests for stage in before.stages.values()] == [42] * 3
    assert [stage.most for stage in before.stages.values()] == [126] * 3
    assert before.most_dollars == pytest.approx(3 * before.dollars)
    assert 0.1 < before.dollars < 1 and before.stages["mapping"].dollars == 0
    assert "42 questions" in str(before)

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    how.max_dollars = 0.2
    stopped = run(how, tmp_path / "out", source)
    after = build.dry_run(how, **what)
    done = [stage["answers"] for stage in stopped.summary["stages"].values()]
    assert [stage.requests for stage in after.stages.values()] == [42 - n for n in done]
    # Prices are now those measured.
    left = after.stages["reassembly"]
    assert left.dollars == pytest.approx(left.requests * 0.0035)
    assert after.spent == pytest.approx(sum(done[::2]) * 0.0035)


def test_other_prompts_are_other_requests(server, config, tmp_path):
    source = write_questions(tmp_path / "data", 14)
    fake = server()
    run(config(fake.url), tmp_path / "out", source)
    run(config(fake.url, **{"stages.reassembly.temperature": 0.5}), tmp_path / "out", source)
    assert len(fake.requests()) == 42 + 14
    # Other questions are another folder's.
    with pytest.raises(UserError, match="chosen otherwise"):
        run(config(fake.url, seed=5), tmp_path / "out", source)


def test_one_process_at_a_time(server, config, tmp_path):
    source = write_questions(tmp_path / "data", 7)
    fake = server()
    held = build.Journal(tmp_path / "out", "replies.jsonl", write=True)
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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shard=2/2"], "--shard=2/2: it is i/n"),
        (["--input=missing.json"], "missing.json: cannot be read"),
        (["--config.prompts=nowhere"], "reasoning/frame.txt: cannot be read"),
        (["--config.tries=0"], "tries: at least one"),
        (["--config.concurrency=0"], "concurrency: at least one"),
        (["--config.checks.answer_iou=2.0"], "lie within 0..1"),
        (["--config.stages.mapping.teacher=magic"], "openai, scenes and model are known"),
        (["--config.select.weights.diff=-1.0"], "select: counts and weights"),
        (["--config.stages.mapping.key_variable=NO_KEY"], "NO_KEY is not set"),
    ],
)
def test_the_binary_refuses_in_one_line(config, tmp_path, flags, message):
    source = write_questions(tmp_path / "data", 7)
    config("")
    flags = [*command(flags_for("http://127.0.0.1:9/v1"), tmp_path / "out", source), *flags]
    ended = subprocess.run(flags, capture_output=True, text=True)
    assert ended.returncode == 2 and message in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_the_binary_says_what_is_left(config, tmp_path, monkeypatch):
    source = write_questions(tmp_path / "data", 21)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    flags = command(flags_for("http://127.0.0.1:9/v1"), tmp_path / "out", source)
    ended = subprocess.run([*flags, "--dry_run"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "21 questions: common_object 3, diff 3" in ended.stdout
    assert "spent: $0.00" in ended.stdout
    ended = subprocess.run([*flags, "--batches"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "reasoning-0001.jsonl" in ended.stdout


def test_no_key_is_one_line(server, config, tmp_path, monkeypatch):
    source = write_questions(tmp_path / "data", 7)
    how = config("http://127.0.0.1:9/v1")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is not set"):
        run(how, tmp_path / "out", source)


@pytest.mark.slow
def test_64_requests_at_a_time_are_kept_under_way(server, config, tmp_path):
    # Answers take a second, images are read, made smaller and encoded on the way; of the rate that
    # is possible, between the first questions and the last.
    source = write_questions(tmp_path / "data", 800, size=640)
    fake = server("--delay=1.0")
    how = config(fake.url, concurrency=64, max_pixels=200_000)
    for stage in how.stages.values():
        stage.timeout = 60.0
    run(how, tmp_path / "out", source)
    check_whole(tmp_path / "out", 800)
    came = np.array(fake.times())
    middle = came[len(came) // 5 : len(came) * 4 // 5]
    assert len(middle) / np.ptp(middle) > 0.9 * 64


@pytest.mark.slow
def test_memory_does_not_grow_with_the_questions(server, config, tmp_path):
    source = write_questions(tmp_path / "data", 3000, size=96, detail=96)
    fake = server("--bad=0.1", "--delay=0.01")
    config(fake.url)
    process = subprocess.Popen(
        command(flags_for(fake.url), tmp_path / "out", source), stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    seen = []
    while process.poll() is None:
        pages = int(pathlib.Path(f"/proc/{process.pid}/statm").read_text().split()[1] or 0)
        if len(fake.requests()) > 2000:
            seen.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        time.sleep(0.5)
    assert process.returncode == 0
    check_whole(tmp_path / "out", 3000)
    assert len(seen) > 10 and max(seen) - seen[0] < 40  # MiB; 4 here, and 55 if images were kept


def provider(path, server_answers, leave_out=()):
    """What a batch interface gives back for a file of requests."""
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
    del given[len(given) - (n > 20) :]  # and one is not there at all
    text = "".join(json.dumps(row) + "\n" for row in given[::-1])
    path.with_suffix(".answers.jsonl").write_text(text)
    return len(rows)


def test_batch_files_go_round_by_round(config, tmp_path, monkeypatch):
    source = write_questions(tmp_path / "data", 28)
    how = config("http://127.0.0.1:9/v1", **{"stages.mapping.model": "other"})
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setattr(batches, "MOST_REQUESTS", 25)
    what = {"source": str(source), "image_root": str(source.parent), "output_dir": tmp_path / "out"}
    written, rounds = collections.Counter(), 0
    while True:
        result = build.batch(how, **what)
        if not result.files:
            break
        rounds += 1
        # Nothing waits twice: what is with the provider is not written again.
        again = build.batch(how, **what)
        assert not again.files and again.waiting == sum(len(lines(path)) for path in result.files)
        for path in result.files:
            assert len(lines(path)) <= 25
            assert len({row["body"]["model"] for row in lines(path)}) == 1
            written[path.stem.split("-")[0]] += provider(path, fake_server.answer, leave_out={1})
    # One of each file came back as an error, and one of the large not at all.
    assert rounds > 3 and result.waiting == 0
    assert all(28 < count < 40 for count in written.values())
    accepted, rejected = check_whole(tmp_path / "out", 28)
    assert len(accepted) == 28
    spent = sum(row.get("dollars", 0) for row in lines(tmp_path / "out/replies.jsonl")
                if "reply" in row)  # fmt: skip
    assert spent == pytest.approx(28 * 2 * 0.0035)
    left = build.dry_run(how, **what)
    assert left.dollars == 0 and left.spent == pytest.approx(spent)

    how.max_dollars = 0.05
    capped = build.batch(how, **what | {"output_dir": tmp_path / "capped"})
    assert capped.capped > 0 and sum(len(lines(path)) for path in capped.files) > 0
    (tmp_path / "capped/batches/reasoning-0001.answers.jsonl").write_text("{")
    with pytest.raises(UserError, match="answers.jsonl line 1: not a line of a batch file"):
        build.batch(how, **what | {"output_dir": tmp_path / "capped"})
    with pytest.raises(ConfigError, match="must be openai"):
        build.batch(config("", **{"stages.mapping.teacher": "scenes"}), **what)
