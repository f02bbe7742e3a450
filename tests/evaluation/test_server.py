"""A server stands in for each family, over real HTTP, and misbehaves."""

import base64
import collections
import io
import json
import os

import pytest
import server_runs
from asking import KEY
from conftest import call
from PIL import Image
from server_runs import TRANSPORT, answered, answers_of, ask, flags_for, lines, write_benchmark

from mirg_jax.errors import UserError
from mirg_jax.evaluation import server
from mirg_jax.mig_bench import families
from mirg_jax.mig_bench.benchmark import load_benchmark
from mirg_jax.mig_bench.families import FAMILIES
from mirg_jax.mig_bench.responses import load_predictions

fake = server_runs.fake


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


@pytest.mark.parametrize("status", [401, 404, 422])
def test_a_server_that_refuses_everything_is_one_line(fake, tmp_path, status):
    bench = write_benchmark(tmp_path / "data", 40)
    refusing = fake(["x"] * 40, f"--status={status}")
    flags = flags_for("mirg", refusing.url, bench, tmp_path / "out", "--timeout=30")
    ended = call("evaluate_server", *flags)
    assert ended.returncode == 2 and f"HTTP {status}" in ended.stderr
    said = [line for line in ended.stderr.replace("\r", "\n").splitlines() if "HTTP" in line]
    assert len(said) == 1 and "[key]" in said[0] and "Traceback" not in ended.stderr
    assert KEY not in ended.stderr + ended.stdout
    assert len(refusing.requests()) <= 16 + 3
    for path in (tmp_path / "out").iterdir():
        assert KEY not in path.read_text()
    assert not (tmp_path / "out/scores.json").exists()


def test_no_key_is_one_line(tmp_path, monkeypatch, refusal):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    bench = write_benchmark(tmp_path / "data", 2)
    flags = flags_for("mirg", "http://127.0.0.1:9/v1", bench, tmp_path / "out")
    line = refusal("evaluate_server", *flags)
    assert "OPENAI_API_KEY is not set" in line and "\n" not in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--family=gpt"], "--family=gpt"),
        (["--extra_body=[1]"], "--extra_body: expected a JSON object"),
        (["--extra_body={"], "--extra_body: not valid JSON"),
        (['--extra_body={"model": "other"}'], "--extra_body: 'model' can't be set here"),
        (['--extra_body={"api_key": "hunter2"}'], "--extra_body: 'api_key' can't be set here"),
        (["--concurrency=0"], "concurrency=0: 0 is not a positive integer"),
        (["--max_pixels=9"], "--max_pixels=9"),
        (["--benchmark=none.json"], "none.json: cannot be read"),
        (["--base_url=localhost:8000/v1"], "http://HOST:PORT/v1"),
        (["--base_url=http://[::1"], "base_url=http"),
        (["--base_url=http://host:port/v1"], "port"),
    ],
)
def test_the_binary_refuses_in_one_line(tmp_path, flags, message, refusal):
    bench = write_benchmark(tmp_path / "data", 2)
    some = flags_for("mirg", "http://127.0.0.1:9/v1", bench, tmp_path / "out", "--key_variable=")
    line = refusal("evaluate_server", *some, *flags)
    assert message in line and "\n" not in line


def test_a_server_that_is_down_loses_nothing(fake, tmp_path):
    bench, folder = write_benchmark(tmp_path / "data", 20), tmp_path / "out"
    with pytest.raises(UserError, match="127.0.0.1:9/v1/: no request got an answer .*ConnectError"):
        ask("mirg", "http://127.0.0.1:9/v1", bench, folder, retries=2)
    assert (folder / "rejected.jsonl").read_text() == ""
    up = fake(answers_of("mirg", bench))
    assert ask("mirg", up.url, bench, folder).missing == 0


def test_the_progress_bar_counts_answers_apart_from_failures(fake, tmp_path, capsys):
    bench, folder = write_benchmark(tmp_path / "data", 20), tmp_path / "out"
    flaky = fake(answers_of("mirg", bench), "--bad=0.4", "--flaws=400")
    scores = ask("mirg", flaky.url, bench, folder, retries=0, concurrency=1, progress=True)
    last = capsys.readouterr().err.strip().split("\r")[-1]
    assert f" {20 - scores.missing}/20 " in last and f"{scores.missing} without an answer" in last
    assert scores.missing > 3


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
    with pytest.raises(UserError, match="no request got an answer .*the engine is dead"):
        ask("mirg", dead.url, bench, tmp_path / "dead", retries=1)


def test_the_binary_reads_dialects_of_every_task(fake, tmp_path, refusal):
    bench, folder = write_benchmark(tmp_path / "data", 60), tmp_path / "out"
    odd = fake(
        answers_of("mirg", bench), "--bad=1", "--flaws=as reasoning,as all reasoning,as parts"
    )
    flags = flags_for("mirg", odd.url, bench, folder, "--timeout=30")
    assert refusal("evaluate_server", *flags, "--limit=10") == ""
    scores = json.loads((folder / "scores.json").read_text())
    assert len(scores["tasks"]) == 10 and scores["overall"]["format_rate"] > 0.5
    line = refusal("evaluate_server", *flags, "--max_tokens=7")
    assert "predictions of another run" in line and "max_tokens" in line
    line = refusal("evaluate_server", *flags, "--apply_exif")
    assert "apply_exif was false, is true" in line and len(odd.requests()) == 10


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
