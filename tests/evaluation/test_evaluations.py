"""Folders of evaluations: what their answers depend on, resuming, and runs without an answer."""

import dataclasses
import json
import os
import shutil
import signal

import numpy as np
import pytest
from bench_rows import file_row
from conftest import REPOSITORY
from PIL import Image
from safetensors.numpy import save_file

from mirg_jax import defaults
from mirg_jax.data.image_hashes import ImageHashes
from mirg_jax.data.images import load_image
from mirg_jax.data.prompts import PromptStyle
from mirg_jax.errors import ConfigError, DataError, UserError
from mirg_jax.evaluation import answering, evaluate
from mirg_jax.evaluation.predictions import Predictions, rejected_rows
from mirg_jax.files import places
from mirg_jax.inference.predictor import Prediction, Predictor
from mirg_jax.runs import run_folder
from mirg_jax.runs.settings import read

HIT = "<think>t</think><answer><|box_start|>(100,200),(500,600)<|box_end|></answer>"
EARLIER = ("model", "step", "benchmark", "coordinates")  # what run.json held once


class Asked:
    """Stands in for a model: answers rows whose images can be read, and notes what it was asked."""

    def __init__(self):
        self.rows, self.root = [], ""

    def open(self, checkpoint, settings, *, image_root):
        self.root, self.long_enough = image_root, settings.evaluation.max_tokens >= 20
        return self

    def predict(self, examples):
        for index, example in examples:
            self.rows.append(index)
            try:
                for path in example.images:
                    load_image(self.root, path)
            except DataError as error:
                yield Prediction(index, None, str(error))
            else:
                yield Prediction(index, HIT if self.long_enough else HIT[:20])


@pytest.fixture
def asked(monkeypatch):
    asked = Asked()
    monkeypatch.setattr(Predictor, "open", asked.open)
    return asked


@pytest.fixture
def data(tmp_path):
    """A folder with a benchmark of six rows, its images, and the files of a model."""
    for n in range(2):
        Image.new("RGB", (60, 40)).save(tmp_path / f"{n}.jpg")
    write(tmp_path / "rows.json", [file_row(task=task) for task in ("diff", "region") * 3])
    (tmp_path / "model").mkdir()
    write(tmp_path / "model/config.json", {"model_type": "qwen2_vl"})
    write(tmp_path / "model/tokenizer.json", {"model": 1})
    save_file(tensors(), tmp_path / "model/model.safetensors")
    return tmp_path


def write(path, content):
    path.write_text(json.dumps(content))


def tensors(**changes):
    return {"a": np.zeros((9, 300), np.float32), "b": np.ones(4000, np.float32)} | changes


def run(data, folder="out", model="model", bench="rows.json", root=None, limit=0, **changes):
    config = defaults.inference()
    config.evaluation.max_tokens = 40
    config.update_from_flattened_dict(changes)
    return evaluate.run(
        read(config),
        checkpoint=str(data / model),
        benchmark=str(data / bench),
        image_root=str(root or data),
        output_dir=places.of(folder) if places.is_url(folder) else data / folder,
        limit=limit,
    )


def draw(path, colour, size=(60, 40)):
    Image.new("RGB", size, colour).save(path)


def edit_rows(data):
    rows = json.loads((data / "rows.json").read_text())
    rows[3]["question"] += " Look again."
    write(data / "rows.json", rows)


def nudge(data):
    """Changes a number between those that samples of a tensor see."""
    other = np.ones(4000, np.float32)
    other[1000] = 1.5
    save_file(tensors(b=other), data / "model/model.safetensors")


def retrain(data):
    last = np.zeros((9, 300), np.float32)
    last[8, 299] = 1  # as if a token had been added
    save_file(tensors(a=last), data / "model/model.safetensors")


@pytest.mark.parametrize(
    ("before", "change", "words"),
    [
        ({"evaluation.max_tokens": 8}, None, "max_tokens was 8, is 40"),
        ({"data.max_pixels": 50176}, None, "max_pixels was 50176, is 401408"),
        ({"data.min_pixels": 784}, None, "min_pixels was 784"),
        ({"prompt.instruction": "Be brief."}, None, 'prompt.instruction was "Be brief.", is ""'),
        ({"prompt.image_label": ""}, None, "prompt.image_label"),
        ({"model.compute_dtype": "float32"}, None, 'compute_dtype was "float32", is "bfloat16"'),
        ({"evaluation.coordinates": "pixels"}, None, 'coordinates was "pixels"'),
        ({}, edit_rows, "the benchmark's content has changed"),
        ({}, retrain, "the model's weights have changed"),
        ({}, nudge, "the model's weights have changed"),
        ({}, lambda data: write(data / "model/tokenizer.json", {}), "weights have changed"),
        (
            {},
            lambda data: draw(data / "1.jpg", "red"),
            "the images of 2 answered rows have changed",
        ),
        ({}, lambda data: draw(data / "0.jpg", "black", (60, 41)), "the first: row"),
    ],
)
def test_answers_of_other_settings_are_not_kept(asked, data, before, change, words):
    first = run(data, limit=2, **before)
    cut = {"evaluation.max_tokens", "evaluation.coordinates"} & before.keys()
    assert first.overall.hit_rate == (0 if cut else 1)
    if change:
        change(data)
    record = (data / "out/run.json").read_text()
    with pytest.raises(ConfigError, match="another run") as error:
        run(data)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert len(asked.rows) == 2 and (data / "out/run.json").read_text() == record
    assert run(data, folder="other").overall.hit_rate == 1 and len(asked.rows) == 8
    if not change:  # with the settings of before it goes on
        assert run(data, **before).missing == 0 and len(asked.rows) == 12


def test_a_folder_whose_model_was_recorded_by_samples_goes_on(asked, data):
    run(data, limit=2)
    record = data / "out/run.json"
    facts = json.loads(record.read_text())
    samples, dot, _ = facts["weights"].partition(".")
    assert (
        dot
        and json.loads((data / "out/scores.json").read_text())["benchmark_sha256"]
        == (facts["benchmark_sha256"])
    )
    write(record, facts | {"weights": samples})
    # So were images, in the line of each row.
    path = data / "out/predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert all("." in row["images"] for row in rows)
    earlier = [row | {"images": row["images"].partition(".")[0]} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in earlier))
    assert run(data, limit=4).missing == 0
    retrain(data)
    with pytest.raises(ConfigError, match="the model's weights have changed"):
        run(data)


def test_the_same_content_elsewhere_is_the_same(asked, data):
    run(data, limit=2)
    shutil.copytree(data / "model", data / "moved")
    shutil.copy(data / "rows.json", data / "renamed.json")
    changes = {"evaluation.batch_size": 3, "cpu_devices": 0, "data.threads": 1}
    assert run(data, model="moved", bench="renamed.json", **changes).missing == 0
    assert sorted(asked.rows) == list(range(6))


def test_images_count_by_their_content(asked, data, capsys):
    run(data, limit=2)
    copy = data / "copy"
    copy.mkdir()
    for n in range(2):
        shutil.copy(data / f"{n}.jpg", copy)  # with another date
    assert run(data, root=copy, limit=4).missing == 0 and len(asked.rows) == 4
    other, scores = copy / "0.jpg", data / "out/scores.json"
    whole = json.loads(scores.read_text())["images"]
    assert whole == ImageHashes(data).of_rows([["0.jpg", "1.jpg"]] * 2)
    draw(other, "red")
    with pytest.raises(ConfigError, match="images of 4 answered rows have changed"):
        run(data, root=copy)
    (copy / "0.jpg").unlink()  # one that has gone is no other
    assert run(data, root=copy).missing == 2 and len(asked.rows) == 6
    # Lines of an earlier version don't say which images they are about.
    path = data / "out/predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"images": None}) + "\n" for row in rows))
    draw(data / "1.jpg", "red")
    assert "images" not in capsys.readouterr().err
    assert run(data).missing == 0
    assert "4 answers don't record the images that they are about" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["run.json", "rejected.jsonl", "scores.json", "predictions.jsonl"])
def test_a_folder_in_a_file_s_place_is_told_before_anything_is_asked(asked, data, name):
    (data / "out" / name).mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"{name}' cannot be written .it is a folder"):
        run(data)
    assert not asked.rows


def test_a_list_of_rejected_rows_that_cannot_be_written_costs_a_line(data, monkeypatch, capsys):
    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mirg_jax.evaluation.predictions.outputs.replace_text", full)
    with Predictions(data / "out", {}, 1) as kept:
        kept.write_rejected(rejected_rows("rows.json", {0: "no such file"}))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "rejected.jsonl: cannot be written (No space left" in said


def test_a_rejected_row_without_an_id_is_no_row(asked, data):
    """As another hand left it."""
    run(data, limit=2)
    record = data / "out/run.json"
    write(record, {name: json.loads(record.read_text())[name] for name in EARLIER})
    (data / "out/rejected.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="without recording .* 4 rows"):
        run(data)


def test_a_folder_without_predictions_can_be_used_for_anything(asked, data):
    with pytest.raises(UserError):
        run(data, root=data / "nowhere")
    edit_rows(data)
    assert run(data, **{"evaluation.max_tokens": 50}).missing == 0


def of_an_earlier_version(folder):
    found = json.loads((folder / "run.json").read_text())
    write(folder / "run.json", {name: found[name] for name in EARLIER})


def test_a_finished_folder_of_an_earlier_version_is_scored(asked, data):
    scores = run(data)
    of_an_earlier_version(data / "out")
    assert run(data) == scores and len(asked.rows) == 6
    with pytest.raises(ConfigError, match='coordinates was "grid", is "pixels"'):
        run(data, **{"evaluation.coordinates": "pixels"})
    # Complete, too, if what is missing was rejected.
    lines = (data / "out/predictions.jsonl").read_text().splitlines(keepends=True)
    (data / "out/predictions.jsonl").write_text("".join(lines[:-1]))
    left = str(json.loads(lines[-1])["index"])
    write(data / "out/rejected.jsonl", {"source": "x", "id": left, "reason": "no such file"})
    assert run(data).missing == 1 and len(asked.rows) == 6
    assert json.loads((data / "out/rejected.jsonl").read_text())["id"] == left


def test_an_unfinished_folder_of_an_earlier_version_says_what_to_do(asked, data):
    run(data, limit=2)
    of_an_earlier_version(data / "out")
    with pytest.raises(ConfigError, match="without recording weights, benchmark_sha256, prompt"):
        run(data)
    (data / "out/run.now.json").rename(data / "out/run.json")
    assert run(data).missing == 0 and sorted(asked.rows) == list(range(6))


def test_where_no_row_can_be_answered_it_fails_with_the_first_reason(asked, data):
    with pytest.raises(
        UserError, match="no row has an answer; the first: .*nowhere/0.jpg.*no such"
    ):
        run(data, root=data / "nowhere")
    assert not (data / "out/scores.json").exists()
    assert len((data / "out/rejected.jsonl").read_text().splitlines()) == 6
    assert run(data).missing == 0  # with the right folder, nothing is left of it
    assert (data / "out/rejected.jsonl").read_text() == ""


@pytest.mark.parametrize("wrong", ["--image_root={}/nowhere", "--benchmark={}/other.json"])
def test_the_binary_fails_where_no_row_can_be_answered(asked, data, refusal, wrong):
    """The root is wrong, or images are what was downloaded in their place."""
    for n in range(2):
        (data / f"page{n}.jpg").write_text("<!DOCTYPE html><html>Sign in</html>")
    rows = json.loads((data / "rows.json").read_text())
    write(data / "other.json", [row | {"images": ["page0.jpg", "page1.jpg"]} for row in rows])
    flags = (
        f"--config={REPOSITORY}/configs/grpo_tiny.py",
        f"--checkpoint={data}/model",
        f"--benchmark={data}/rows.json",
        f"--image_root={data}",
        f"--output_dir={data}/out",
        "--config.cpu_devices=0",
    )
    line = refusal("evaluate", *flags, wrong.format(data))
    assert "no row has an answer; the first: " in line and "\n" not in line
    assert ("no such file" in line) != ("a page of HTML and no image" in line)
    assert not (data / "out/scores.json").exists()
    assert refusal("evaluate", *flags) == ""
    assert (data / "out/rejected.jsonl").read_text() == ""


def test_rejected_rows_are_those_of_the_last_run(asked, data):
    rows = json.loads((data / "rows.json").read_text())
    rows[1]["images"] = ["2.jpg"]
    rows[4]["images"] = ["3.jpg"]
    write(data / "rows.json", rows)
    assert run(data).missing == 2
    Image.new("RGB", (60, 40)).save(data / "2.jpg")
    assert run(data).missing == 1
    (line,) = (data / "out/rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "4"


def test_a_run_that_is_asked_otherwise_than_trained_is_told(data, monkeypatch, capsys):
    own = dataclasses.replace(read(defaults.inference()), prompt=PromptStyle(instruction="Think."))
    monkeypatch.setattr(answering, "read_own_settings", lambda source: own)
    monkeypatch.setattr(run_folder, "find_run", lambda source: object())
    answering._say_other_inputs("runs/sft", read(defaults.inference()))
    said = capsys.readouterr().err
    assert "runs/sft: is asked otherwise than it was trained: prompt.instruction was" in said
    answering._say_other_inputs("runs/sft", own)
    assert capsys.readouterr().err == ""


def test_a_stop_signal_ends_in_order_and_keeps_the_answers(asked, data, monkeypatch, capsys):
    predict = asked.predict

    def stopped(examples):
        for number, prediction in enumerate(predict(examples)):
            if number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield prediction

    monkeypatch.setattr(asked, "predict", stopped)
    with pytest.raises(SystemExit) as ended:
        run(data)
    assert ended.value.code == 143
    line = "SIGTERM: ending; the answers so far are kept; a second one ends at once"
    assert capsys.readouterr().err.count(line) == 1
    assert len((data / "out/predictions.jsonl").read_text().splitlines()) == 2
    assert not (data / "out/predictions.lock").exists()
    monkeypatch.setattr(asked, "predict", predict)
    asked.rows.clear()
    run(data)
    assert len(asked.rows) == 4


def test_an_evaluation_in_a_bucket_goes_on_and_ends_as_on_a_disk(asked, data, bucket):
    scores = run(data, limit=2)
    assert run(data, "gs://bucket/eval", limit=2) == scores
    assert asked.rows[:2] == asked.rows[2:]
    scores = run(data)
    assert run(data, "gs://bucket/eval") == scores
    assert len(asked.rows) == 12
    names = {"predictions.jsonl", "rejected.jsonl", "report.html", "run.json", "scores.json"}
    assert {key.removeprefix("bucket/eval/") for key in bucket.objects} == names
    kept = (data / "out/predictions.jsonl").read_bytes()
    assert bucket.objects["bucket/eval/predictions.jsonl"] == kept
