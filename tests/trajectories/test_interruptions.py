"""Runs that are killed, stopped by a signal or by the budget; and long runs."""

import collections
import json
import os
import pathlib
import signal
import subprocess
import time

import numpy as np
import pipeline_runs
import pytest
from asking import KEY, write_questions
from pipeline_runs import check_whole, command, flags_for, lines, run

config, server = pipeline_runs.config, pipeline_runs.server


@pytest.mark.parametrize(
    ("count", "kills"), [(105, 2), pytest.param(1000, 10, marks=pytest.mark.slow)]
)
def test_killed_runs_go_on_and_pay_nothing_twice(server, config, tmp_path, count, kills, refusal):
    source = write_questions(tmp_path / "data", count)
    fake = server("--bad=0.2", "--delay=0.02")
    folder = tmp_path / "out"
    journal = folder / "replies.jsonl"
    config(fake.url)  # sets the key
    all_flags = command(flags_for(fake.url, timeout=1.0), folder, source)

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
    # Only requests in progress when the process was killed were answered twice.
    good = collections.Counter(key for key, fate in fake.requests() if fate == "good")
    assert sum(n - 1 for n in good.values()) <= kills * 16

    before = len(fake.requests())
    _, script, *own_flags = all_flags
    assert refusal(script.stem, *own_flags) == "" and len(fake.requests()) == before
    # The key is in no output.
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
        stderr=subprocess.PIPE,
    )  # fmt: skip
    while not (folder / "replies.jsonl").exists() or len(fake.requests()) < 20:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped: SIGTERM" in out
    assert said.count("SIGTERM: waiting for the requests under way; a second one ends at once") == 1
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
    assert asked <= 16  # the first answer pauses all other requests
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
    # The run stops when the next request might exceed the limit, and not before.
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


@pytest.mark.slow
def test_64_requests_at_a_time_are_kept_under_way(server, config, tmp_path):
    # Answers take five seconds, and images are read, shrunk and encoded meanwhile. The rate is
    # measured between the first and the last fifth of the requests.
    delay = 5.0
    source = write_questions(tmp_path / "data", 800, size=640)
    fake = server(f"--delay={delay}")
    run(config(fake.url, concurrency=64, max_pixels=200_000), tmp_path / "out", source)
    check_whole(tmp_path / "out", 800)
    came = np.array(fake.times())
    middle = came[len(came) // 5 : len(came) * 4 // 5]
    assert len(middle) / np.ptp(middle) * delay > 0.9 * 64  # requests under way, on average


@pytest.mark.slow
def test_memory_does_not_grow_with_the_questions(server, config, tmp_path):
    source = write_questions(tmp_path / "data", 3000, size=96, detail=96)
    fake = server("--bad=0.1", "--delay=0.01")
    config(fake.url)
    all_flags = command(flags_for(fake.url, timeout=1.0), tmp_path / "out", source)
    process = subprocess.Popen(all_flags, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    seen = []
    while process.poll() is None:
        pages = int(pathlib.Path(f"/proc/{process.pid}/statm").read_text().split()[1] or 0)
        if len(fake.requests()) > 2000:
            seen.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        time.sleep(0.5)
    assert process.returncode == 0
    check_whole(tmp_path / "out", 3000)
    assert len(seen) > 10 and max(seen) - seen[0] < 40  # MiB; 4 here, and 55 if images were kept
