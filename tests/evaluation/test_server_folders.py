"""What an evaluation of a server leaves in its folder, and how it goes on from there."""

import collections
import dataclasses
import json
import shutil
import signal
import subprocess
import time

import pytest
import server_runs
from asking import KEY
from conftest import call, page_data
from PIL import Image
from server_runs import (
    TRANSPORT,
    answered,
    answers_of,
    ask,
    command,
    flags_for,
    lines,
    write_benchmark,
)

from mirg_jax.errors import ConfigError, UserError
from mirg_jax.evaluation import server
from mirg_jax.mig_bench import families
from mirg_jax.mig_bench.benchmark import load_benchmark
from mirg_jax.mig_bench.families import FAMILIES

fake = server_runs.fake


def test_a_killed_run_goes_on_and_repeats_no_answered_request(fake, tmp_path):
    bench, folder = write_benchmark(tmp_path / "data", 100), tmp_path / "out"
    said = answers_of("qwen2_5_vl", bench)
    slow = fake(said, "--bad=0.2", f"--flaws={TRANSPORT}", "--delay=0.1")
    flags = flags_for("qwen2_5_vl", slow.url, bench, folder, "--concurrency=8")
    asked = server.Server("some/model")
    questions = server.Questions(FAMILIES["qwen2_5_vl"], "answer", asked, str(bench.parent))
    keys = {questions.request(row)[1]: row.index for row in load_benchmark(bench)}
    process = subprocess.Popen(command(*flags), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(answered(folder)) < 50 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with (folder / "predictions.jsonl").open("a") as file:
        file.write('{"index": 99, "resp')  # as if killed while writing
    known, before = answered(folder), len(slow.requests())
    assert 50 <= len(known) < 100
    ended = call("evaluate_server", *flags)
    assert ended.returncode == 0, ended.stderr
    assert not known & {keys[key] for key, _ in slow.requests()[before:]}
    # Only what was under way when the process was killed was answered twice.
    good = collections.Counter(key for key, fate in slow.requests() if fate == "good")
    assert len(good) == 100 and sum(n - 1 for n in good.values()) <= 8
    assert json.loads(ended.stdout.splitlines()[-1])["n"] == 100

    # Its predictions, scored by the other binary.
    output = tmp_path / "other.json"
    scored = call(
        "score", f"--benchmark={bench}", f"--predictions={folder / 'predictions.jsonl'}",
        f"--output={output}", "--family=qwen2_5_vl", f"--image_root={bench.parent}",
    )  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    mine, other = json.loads((folder / "scores.json").read_text()), json.loads(output.read_text())
    assert all(mine[part] == other[part] for part in ("tasks", "overall", "rows", "average"))

    before = len(slow.requests())
    ask("qwen2_5_vl", slow.url, bench, folder)
    assert len(slow.requests()) == before
    # The key is nowhere.
    assert KEY not in ended.stdout + ended.stderr
    for path in folder.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


def test_what_is_never_answered_is_listed_and_asked_again_the_next_time(fake, tmp_path):
    bench, folder = write_benchmark(tmp_path / "data", 60), tmp_path / "out"
    said = answers_of("mirg", bench)
    flaky = fake(said, "--bad=0.3", "--flaws=500,400,empty")
    # One at a time: of many, several may fail before the first is answered, as if none could be.
    scores = ask("mirg", flaky.url, bench, folder, retries=1, concurrency=1)
    rejected = lines(folder / "rejected.jsonl")
    assert 0 < len(rejected) == scores.missing < 40
    assert {row["reason"].split(":")[0] for row in rejected} <= {
        "HTTP 500", "HTTP 400", "no choice in the answer"
    }  # fmt: skip
    assert all(row["source"] == f"{bench} row {row['id']}" for row in rejected)
    assert answered(folder) == set(range(60)) - {int(row["id"]) for row in rejected}
    before = len(flaky.requests())
    up = fake(said)
    assert ask("mirg", up.url, bench, folder).missing == 0
    assert len(up.requests()) == len(rejected) and len(flaky.requests()) == before
    assert (folder / "rejected.jsonl").read_text() == ""


def test_a_log_of_errors_that_cannot_be_written_costs_a_line(fake, tmp_path, monkeypatch, capsys):
    bench, folder = write_benchmark(tmp_path / "data", 20), tmp_path / "out"

    def full(self, row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(server._Round, "_log", full)
    flaky = fake(answers_of("mirg", bench), "--bad=0.5", "--flaws=500")
    assert ask("mirg", flaky.url, bench, folder).missing == 0
    assert capsys.readouterr().err.count("errors.jsonl: cannot be written (No space left") == 1


def test_answers_to_other_images_are_not_kept(fake, tmp_path):
    bench, folder = write_benchmark(tmp_path / "data", 4), tmp_path / "out"
    up = fake(answers_of("mirg", bench))
    ask("mirg", up.url, bench, folder)
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    assert ask("mirg", up.url, tmp_path / "moved/bench.json", folder).missing == 0
    Image.new("RGB", (30, 30)).save(tmp_path / "moved/images/0.jpg")
    with pytest.raises(ConfigError, match="the images of . answered rows have changed"):
        ask("mirg", up.url, tmp_path / "moved/bench.json", folder)
    assert len(up.requests()) == 4


def test_an_empty_answer_is_not_kept(fake, tmp_path):
    bench, folder = write_benchmark(tmp_path / "data", 20), tmp_path / "out"
    said = answers_of("mirg", bench)
    with pytest.raises(UserError, match="no row has an answer; .*took all of it for reasoning"):
        parsing = fake(said, "--bad=1", "--flaws=as thoughts alone")
        ask("mirg", parsing.url, bench, folder)
    assert not (folder / "scores.json").exists() and answered(folder) == set()
    # As an earlier version left it; the lines around stay.
    file = folder / "predictions.jsonl"
    kept = [{"index": 2, "response": said[2]}, {"index": 5, "response": "", "problem": "empty"}]
    kept.append({"index": 7, "response": said[7]})
    file.write_text("".join(json.dumps(line) + "\n" for line in kept))
    up = fake(said)
    assert ask("mirg", up.url, bench, folder).missing == 0
    assert len(up.requests()) == 18 and (folder / "rejected.jsonl").read_text() == ""
    assert sorted(line["index"] for line in lines(file)) == list(range(20))
    assert {line["index"]: line["response"] for line in lines(file)} == dict(enumerate(said))


def test_unreadable_images_are_rejected(fake, tmp_path):
    bench, folder = write_benchmark(tmp_path / "data", 24), tmp_path / "out"
    (tmp_path / "data/images/3.jpg").write_bytes(b"no picture")
    up = fake(answers_of("mirg", write_benchmark(tmp_path / "whole", 24)))
    scores = ask("mirg", up.url, bench, folder)
    rejected = lines(folder / "rejected.jsonl")
    bad = [n for n, r in enumerate(json.loads(bench.read_text())) if "images/3.jpg" in r["images"]]
    assert [int(row["id"]) for row in rejected] == bad and scores.missing == len(bad) > 3
    assert all("not an image" in row["reason"] for row in rejected)
    assert len(up.requests()) == 24 - len(bad)
    (tmp_path / "data/images").rename(tmp_path / "data/elsewhere")
    with pytest.raises(UserError, match="no row has an answer; .*no such file"):
        ask("mirg", up.url, bench, tmp_path / "other")


def test_a_limit_is_spread_over_the_tasks_and_can_grow(fake, tmp_path):
    bench, folder = write_benchmark(tmp_path / "data", 60), tmp_path / "out"
    up = fake(answers_of("mirg", bench))
    scores = ask("mirg", up.url, bench, folder, limit=10)
    assert scores.overall.n == len(scores.tasks) == 10 and scores.missing == 0
    first = [row.index for row in scores.rows]
    assert answered(folder) == set(first)
    written = json.loads((folder / "scores.json").read_text())
    assert [row["index"] for row in written["rows"]] == first
    facts = json.loads((folder / "run.json").read_text())
    assert written["benchmark_sha256"] == facts["benchmark_sha256"]
    cards = page_data(folder / "report.html")["views"][0]["cards"]
    assert [card["title"].split(",")[0] for card in cards] == [f"Row {n}" for n in first]
    assert ask("mirg", up.url, bench, folder, limit=20).missing == 0
    assert len(up.requests()) == 20 and answered(folder) > set(first)


def test_a_folder_is_one_models_and_one_processes(fake, tmp_path, monkeypatch, capsys):
    bench, folder = write_benchmark(tmp_path / "data", 4), tmp_path / "out"
    up = fake(answers_of("mirg", bench))
    ask("mirg", up.url, bench, folder)
    with pytest.raises(ConfigError, match="predictions of another run"):
        ask("mirg", up.url, bench, folder, protocol="authors")  # other prompts
    with pytest.raises(ConfigError, match="predictions of another run"):
        ask("mirg", up.url, bench, folder, max_tokens=9)
    copy = tmp_path / "data/other.json"
    copy.write_bytes(bench.read_bytes())
    assert ask("mirg", up.url, copy, folder).missing == 0  # the same content
    rows = json.loads(bench.read_text())
    rows[2]["question"] += "Look again."
    copy.write_text(json.dumps(rows))
    with pytest.raises(ConfigError, match="the benchmark's content has changed"):
        ask("mirg", up.url, copy, folder)
    what = json.loads((folder / "run.json").read_text())
    with monkeypatch.context() as patch:
        family = dataclasses.replace(FAMILIES["mirg"], form=families.Form("", "Be brief."))
        patch.setitem(FAMILIES, "mirg", family)
        with pytest.raises(ConfigError, match='prompt.form was "", is "Be brief."'):
            ask("mirg", up.url, bench, folder)
    # A finished folder of an earlier version is scored, an unfinished one is not gone on with.
    earlier = ("family", "protocol", "benchmark", "max_pixels", "request")
    earlier = {name: what[name] for name in earlier}
    (folder / "run.json").write_text(json.dumps(earlier))
    capsys.readouterr()
    assert ask("mirg", up.url, bench, folder).missing == 0
    told = capsys.readouterr().err.splitlines()
    assert sum("without recording benchmark_sha256, prompt.before" in line for line in told) == 1
    whole = (folder / "predictions.jsonl").read_text()
    (folder / "predictions.jsonl").write_text(whole[: whole.index("\n") + 1])
    with pytest.raises(ConfigError, match="without recording benchmark_sha256, prompt.before"):
        ask("mirg", up.url, bench, folder)
    (folder / "predictions.jsonl").write_text(whole)
    (folder / "run.json").write_text(json.dumps(what))
    with server.Predictions(folder, what, 4):
        with pytest.raises(ConfigError, match="another process writes"):
            ask("mirg", up.url, bench, folder)
    assert ask("mirg", up.url, bench, folder).missing == 0 and len(up.requests()) == 4


def test_a_stop_signal_keeps_what_is_under_way(fake, tmp_path):
    bench, folder = write_benchmark(tmp_path / "data", 60), tmp_path / "out"
    slow = fake(answers_of("mirg", bench), "--delay=0.4")
    flags = flags_for("mirg", slow.url, bench, folder, "--concurrency=4")
    process = subprocess.Popen(command(*flags), stderr=subprocess.PIPE, text=True)
    while len(slow.requests()) < 10:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2 and "stopped by SIGTERM" in said and "Traceback" not in said
    assert said.count("SIGTERM: waiting for the requests under way; a second one ends at once") == 1
    assert len(answered(folder)) == len(slow.requests()) < 60
    assert f"{len(slow.requests())} of 60 rows are answered" in said


def test_another_server_is_recorded_and_told(fake, tmp_path, capsys):
    bench, folder = write_benchmark(tmp_path / "data", 12), tmp_path / "out"
    said = answers_of("mirg", bench)
    first, second = fake(said), fake(said)
    secret = first.url.replace("//", "//me:hidden@") + "?api_key=hidden"

    def servers():
        return json.loads((folder / "run.json").read_text())["servers"]

    def told():
        return [line for line in capsys.readouterr().err.splitlines() if "answers so far" in line]

    ask("mirg", secret, bench, folder, limit=10)
    (address,) = servers()
    assert first.url.rstrip("/") in address and "hidden" not in (folder / "run.json").read_text()
    ask("mirg", secret, bench, folder, limit=11)
    assert told() == [] and servers() == [address]
    ask("mirg", second.url, bench, folder, limit=11)  # asks nothing
    assert told() == [] and servers() == [address]
    ask("mirg", second.url, bench, folder)
    (line,) = told()
    assert f"so far are of {address}, further ones of {servers()[1]};" in line
    assert "hidden" not in line and servers()[1] != address
    # A folder of an earlier version goes on, and is not known to be of one server.
    record = json.loads((folder / "run.json").read_text())
    record.pop("servers")
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "predictions.jsonl").write_text(json.dumps(lines(folder / "predictions.jsonl")[0]))
    assert ask("mirg", second.url, bench, folder).missing == 0
    assert told() == [] and json.loads((folder / "run.json").read_text()) == record


def test_a_model_that_was_not_asked_for_is_counted_and_told_once(fake, tmp_path, capsys):
    bench, folder = write_benchmark(tmp_path / "data", 12), tmp_path / "out"
    said = answers_of("mirg", bench)

    def others():
        return json.loads((folder / "run.json").read_text()).get("other_models")

    ask("mirg", fake(said).url, bench, folder, limit=10)
    assert others() is None and "answers as" not in capsys.readouterr().err
    routed = fake(said, "--model=cheap/model")
    ask("mirg", routed.url, bench, folder)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "answers as" in line]
    assert routed.url in line and "asked for 'some/model', answers as 'cheap/model'" in line
    assert others() == {"cheap/model": 2}
    named = [row.get("model") for row in lines(folder / "predictions.jsonl")]
    assert named == [None] * 10 + ["cheap/model"] * 2
    ask("mirg", routed.url, bench, folder)  # asks nothing
    assert others() == {"cheap/model": 2} and "answers as" not in capsys.readouterr().err
