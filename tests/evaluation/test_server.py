"""A server stands in for each family, over real HTTP, and misbehaves."""

import base64
import collections
import contextlib
import dataclasses
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from answer_forms import SAID
from asking import KEY, serve
from conftest import REPOSITORY, call, page_data
from PIL import Image

from mirg_jax.errors import ConfigError, UserError
from mirg_jax.evaluation import server
from mirg_jax.grounding.tasks import MIG_BENCH_TASKS
from mirg_jax.mig_bench import families
from mirg_jax.mig_bench.benchmark import load_benchmark
from mirg_jax.mig_bench.families import FAMILIES
from mirg_jax.mig_bench.responses import load_predictions

TRANSPORT = "429,429 wait,500,slow,cut,malformed,text,null,empty"
ASIDE = ("", "It is in the second image. ", "Sure! ")


def write_benchmark(folder, count):
    """Rows of all tasks in turn about "thing 0", "thing 1", …, with images of several sizes."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    names = []
    for n, size in enumerate([(100, 60), (300, 80), (60, 150), (97, 211)] * 2):
        pixels = rng.integers(0, 256, (6, 6, 3), np.uint8)
        names.append(f"images/{n}.jpg")
        Image.fromarray(pixels).resize(size).save(folder / names[-1])
    rows = []
    for n in range(count):
        task = list(MIG_BENCH_TASKS)[n % len(MIG_BENCH_TASKS)]
        x1, y1 = rng.uniform(0, 0.4, 2).round(3)
        marked = "(<|box_start|>(58,305),(495,743)<|box_end|>)" * (task == "object_tracking")
        asked = f"For what the first image marks{marked} find thing {n} in the second image. "
        answer = [float(x1), float(y1), round(x1 + 0.5, 3), round(y1 + 0.4, 3)]
        images = [names[n % 8], names[(n + 1 + n % 3) % 8]]
        info = "It is in the second image." * (task == "group_grounding")
        rows.append({"task": task, "images": images, "question": asked, "answer": answer,
                     "additional_info": info, "need_format": True})  # fmt: skip
    path = folder / "bench.json"
    path.write_text(json.dumps(rows))
    return path


def answers_of(name, bench):
    """What a model of the family says to each row: mostly near, at times nothing or nonsense."""
    rows, rng, said = load_benchmark(bench), random.Random(1), []
    for n, row in enumerate(rows):
        if n % 10 == 7:
            said.append("I cannot see any such thing.")
            continue
        box = [min(max(round(1000 * v) + rng.randint(-90, 90), 0), 1000) for v in row.answer]
        with Image.open(bench.parent / row.images[1]) as image:
            size = families.size_given(image.size, families.MAX_PIXELS)
        first, _ = SAID[name](box, size)
        text = ASIDE[n % 3] * (FAMILIES[name].numbers != "grammar") + first
        said.append(text + (" or " + SAID[name]([1, 2, 30, 40], size)[0]) * (n % 10 == 4))
    return said


@pytest.fixture
def fake(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with contextlib.ExitStack() as stack:

        def start(answers, *flags):
            number = len(list(tmp_path.glob("server*.log")))
            file = tmp_path / f"answers{number}.json"
            file.write_text(json.dumps(answers))
            log = tmp_path / f"server{number}.log"
            return stack.enter_context(serve(log, f"--answers={file}", *flags))

        yield start


def ask(name, url, bench, folder, *, protocol="answer", limit=0, **changes):
    how = {"base_url": url, "timeout": 30.0, "backoff": 0.01} | changes
    return server.run(
        name,
        server.Server("some/model", **how),
        benchmark=str(bench),
        image_root=str(bench.parent),
        output_dir=folder,
        protocol=protocol,
        limit=limit,
        progress=False,
    )


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_those_of_the_same_answers_as_a_predictions_file(fake, tmp_path, name):
    bench = write_benchmark(tmp_path / "data", 60)
    rows, said = load_benchmark(bench), answers_of(name, bench)
    file = tmp_path / "said.jsonl"
    file.write_text(
        "".join(json.dumps({"index": n, "response": text}) + "\n" for n, text in enumerate(said))
    )
    misbehaving = fake(said, "--bad=0.2", f"--flaws={TRANSPORT}")
    hits = {}
    for protocol in ("answer", "authors"):
        folder = tmp_path / protocol
        # On a busy machine a second may pass before an answer is read, and then it comes twice.
        scores = ask(name, misbehaving.url, bench, folder, protocol=protocol, timeout=3.0)
        responses = load_predictions(file, 60)
        expected = families.score(
            FAMILIES[name], rows, responses, protocol, image_root=str(bench.parent)
        )
        assert scores == expected and scores.missing == 0
        hits[protocol] = scores.overall.hit_rate
        kept = lines(tmp_path / protocol / "predictions.jsonl")
        assert sorted((line["index"], line["response"]) for line in kept) == list(enumerate(said))
        # What had no answer is listed, and was asked again.
        errors = lines(tmp_path / protocol / "errors.jsonl")
        assert len(errors) > 4 and all(line["reason"] for line in errors)
        assert (tmp_path / protocol / "rejected.jsonl").read_text() == ""
        written = json.loads((tmp_path / protocol / "scores.json").read_text())
        assert (written["family"], written["protocol"]) == (name, protocol)
        assert [r["iou"] for r in written["rows"]] == [r.iou for r in scores.rows]
        assert "thing 3" in (tmp_path / protocol / "report.html").read_text()
    assert 0.4 < hits["answer"] < 1
    # The authors' rule reads pixels as thousandths.
    assert (hits["authors"] < 0.2) if name == "qwen2_5_vl" else (hits["authors"] > 0.4)
    fates = collections.Counter(fate for _, fate in misbehaving.requests())
    assert fates["good"] == 120 and len(fates) > 5


def test_what_is_sent(tmp_path):
    bench = write_benchmark(tmp_path / "data", 4)
    rows = load_benchmark(bench)

    def request(name, protocol="answer", **how):
        asked = server.Server("some/model", **how)
        questions = server.Questions(FAMILIES[name], protocol, asked, str(bench.parent))
        return questions.request(rows[3])

    def sizes(body):
        urls = [p["image_url"]["url"] for p in content(body) if p["type"] == "image_url"]
        files = [io.BytesIO(base64.b64decode(url.split(",")[1])) for url in urls]
        return [Image.open(file).size for file in files]

    def content(body):
        (turn,) = body["messages"]
        assert turn["role"] == "user"
        return turn["content"]

    body, key = request("internvl2")
    assert body.keys() == {"model", "messages", "temperature", "max_tokens"}
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("some/model", 0, 1024)
    assert [p["type"] for p in content(body)] == ["text", "image_url"] * 2 + ["text"]
    assert "(<box>[58,305,495,743]</box>)" in content(body)[-1]["text"]
    assert sizes(body) == [(97, 211), (100, 60)]
    assert sizes(request("internvl2", max_pixels=4000)[0]) == [(42, 93), (81, 48)]
    # Whole patches, whose pixels are counted: in the image that holds it, 112 by 224 of them.
    body, _ = request("qwen2_5_vl")
    assert sizes(body) == [(84, 224), (112, 56)]
    assert "([5, 68, 42, 166])" in content(body)[-1]["text"]
    assert body["skip_special_tokens"] is False
    body, other = request("qwen2_vl", max_tokens=7, extra_body={"top_k": 1, "temperature": 1})
    assert (body["max_tokens"], body["top_k"], body["temperature"]) == (7, 1, 1)
    assert "skip_special_tokens" not in body
    assert [p["type"] for p in content(body)] == ["image_url"] * 2 + ["text"]
    assert key == request("internvl2")[1] != other != request("qwen2_vl")[1]
    for path in (tmp_path / "data/images").iterdir():
        Image.new("RGB", (30, 30), "red").save(path)
    assert key != request("internvl2")[1]  # other pixels of the same names


def flags_for(name, url, bench, folder, *more):
    return [
        f"--family={name}", "--model=some/model", f"--base_url={url}", f"--benchmark={bench}",
        f"--image_root={bench.parent}", f"--output_dir={folder}", "--timeout=1", "--backoff=0.01",
        *more,
    ]  # fmt: skip


def command(*flags):
    return [sys.executable, REPOSITORY / "scripts/evaluate_server.py", *flags]


def answered(folder):
    path = folder / "predictions.jsonl"
    text = path.read_bytes() if path.exists() else b""
    return {json.loads(line)["index"] for line in text[: text.rfind(b"\n") + 1].splitlines()}


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


@pytest.mark.parametrize("status", [401, 404, 422])
def test_a_server_that_refuses_everything_is_one_line(fake, tmp_path, status):
    bench = write_benchmark(tmp_path / "data", 40)
    refusing = fake(["x"] * 40, f"--status={status}")
    ended = call("evaluate_server", *flags_for("mirg", refusing.url, bench, tmp_path / "out"))
    assert ended.returncode == 2 and f"HTTP {status}" in ended.stderr
    said = [line for line in ended.stderr.replace("\r", "\n").splitlines() if "HTTP" in line]
    assert len(said) == 1 and "[key]" in said[0] and "Traceback" not in ended.stderr
    assert KEY not in ended.stderr + ended.stdout
    assert len(refusing.requests()) <= 16 + 3
    for path in (tmp_path / "out").iterdir():
        assert KEY not in path.read_text()
    assert not (tmp_path / "out/scores.json").exists()


def test_no_key_is_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    bench = write_benchmark(tmp_path / "data", 2)
    flags = flags_for("mirg", "http://127.0.0.1:9/v1", bench, tmp_path / "out")
    ended = call("evaluate_server", *flags)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert "OPENAI_API_KEY is not set" in ended.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--family=gpt"], "--family=gpt"),
        (["--extra_body=[1]"], "--extra_body: expected a JSON object"),
        (["--extra_body={"], "--extra_body: not valid JSON"),
        (['--extra_body={"model": "other"}'], "--extra_body: 'model' can't be set here"),
        (["--concurrency=0"], "concurrency=0: 0 is not a positive integer"),
        (["--max_pixels=9"], "--max_pixels=9"),
        (["--benchmark=none.json"], "none.json: cannot be read"),
    ],
)
def test_the_binary_refuses_in_one_line(tmp_path, flags, message):
    bench = write_benchmark(tmp_path / "data", 2)
    some = flags_for("mirg", "http://127.0.0.1:9/v1", bench, tmp_path / "out", "--key_variable=")
    ended = call("evaluate_server", *some, *flags)
    assert ended.returncode == 2 and message in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_server_that_is_down_loses_nothing(fake, tmp_path):
    bench, folder = write_benchmark(tmp_path / "data", 20), tmp_path / "out"
    with pytest.raises(UserError, match="127.0.0.1:9/v1/: no request is answered .*ConnectError"):
        ask("mirg", "http://127.0.0.1:9/v1", bench, folder, retries=2)
    assert (folder / "rejected.jsonl").read_text() == ""
    up = fake(answers_of("mirg", bench))
    assert ask("mirg", up.url, bench, folder).missing == 0


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


def test_an_answer_that_was_cut_or_refused_is_an_answer(fake, tmp_path):
    bench, folder = write_benchmark(tmp_path / "data", 40), tmp_path / "out"
    said = answers_of("mirg", bench)
    odd = fake(said, "--bad=0.5", "--flaws=refusal,length")
    ask("mirg", odd.url, bench, folder)
    kept = lines(folder / "predictions.jsonl")
    problems = collections.Counter(line.get("problem") for line in kept)
    assert problems.keys() == {
        None, "the model refused", "the answer was cut at max_tokens"
    }  # fmt: skip
    assert len(kept) == len(odd.requests()) == 40
    for line in kept:
        refused = line.get("problem") == "the model refused"
        assert line["response"] == ("I can't do that." if refused else said[line["index"]])


@pytest.mark.parametrize("flaw", ["filtered", "as end tokens"])
def test_an_answer_that_the_server_spoilt_is_asked_for_again(fake, tmp_path, flaw):
    bench, folder = write_benchmark(tmp_path / "data", 20), tmp_path / "out"
    said = answers_of("mirg", bench)
    spoiling = fake(said, "--bad=0.5", f"--flaws={flaw}")
    scores = ask("mirg", spoiling.url, bench, folder, concurrency=1, retries=0)
    fates = [fate for _, fate in spoiling.requests()]
    assert scores.missing == fates.count(flaw) > 3
    assert len(answered(folder)) == fates.count("good") > 3
    assert ask("mirg", fake(said).url, bench, folder).missing == 0


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


def test_dialects_of_servers_are_read(fake, tmp_path):
    bench = write_benchmark(tmp_path / "data", 40)
    said = answers_of("mirg", bench)
    plain = ask("mirg", fake(said).url, bench, tmp_path / "plain")
    odd = fake(said, "--bad=1", "--flaws=as reasoning,as all reasoning,as parts")
    scores = ask("mirg", odd.url, bench, tmp_path / "odd")
    assert scores == plain and scores.overall.format_rate > 0.7
    # Errors inside a success, and pages, are asked again; the server's words are in the log.
    flaky = fake(said, "--bad=0.5", "--flaws=as error,text,as aborted")
    assert ask("mirg", flaky.url, bench, tmp_path / "flaky") == plain
    reasons = {line["reason"] for line in lines(tmp_path / "flaky/errors.jsonl")}
    assert reasons == {
        "an error in the answer: the engine is dead", "not a chat completion: a proxy's page",
        "the server broke the answer off (finish_reason 'abort')",
    }  # fmt: skip
    dead = fake(said, "--bad=1", "--flaws=as error")
    with pytest.raises(UserError, match="no request is answered .*the engine is dead"):
        ask("mirg", dead.url, bench, tmp_path / "dead", retries=1)


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
    assert len(answered(folder)) == len(slow.requests()) < 60
    assert f"{len(slow.requests())} of 60 rows are answered" in said


def test_requests_keep_to_the_pace_and_go_side_by_side(fake, tmp_path):
    bench = write_benchmark(tmp_path / "data", 16)
    said = answers_of("mirg", bench)
    up = fake(said)
    ask("mirg", up.url, bench, tmp_path / "paced", requests_per_minute=1200)
    assert max(up.times()) - min(up.times()) > 15 * 0.05 - 0.2
    slow = fake(said, "--delay=0.5")
    ask("mirg", slow.url, bench, tmp_path / "beside", concurrency=16)
    assert max(slow.times()) - min(slow.times()) < 0.5  # all came before the first was answered


def test_the_server_comes_from_the_environment(fake, tmp_path, monkeypatch):
    bench = write_benchmark(tmp_path / "data", 4)
    up = fake(answers_of("mirg", bench))
    monkeypatch.setenv("OPENAI_BASE_URL", up.url)
    assert os.environ["OPENAI_API_KEY"] == KEY
    assert ask("mirg", "", bench, tmp_path / "out").missing == 0
