"""Rating of rows with a stand-in for the model: numbers, resuming, refusals."""

import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

from mirg_jax import defaults
from mirg_jax.errors import ConfigError, UserError
from mirg_jax.evaluation import rating
from mirg_jax.inference.predictor import Prediction, Predictor
from mirg_jax.runs.settings import read


class Drawn:
    """Answers with a box whose height follows from the answer's number, and notes the numbers.

    Attributes:
      stop_at: the number of an answer at which a signal to stop comes.
    """

    def __init__(self, stop_at=None):
        self.numbers, self.directs, self.temperature, self.stop_at = [], [], None, stop_at

    def open(self, checkpoint, settings, *, image_root, temperature, samples):
        self.temperature, self.samples = temperature, samples
        return self

    def predict(self, examples):
        for row, example in examples[::-1]:  # in any order
            for number in range(row * self.samples, (row + 1) * self.samples):
                self.numbers.append(number)
                self.directs.append(example.direct)
                if number == self.stop_at:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield self._answer(number, example)

    def _answer(self, number, example):
        if example.images == ("nowhere.png",):
            return Prediction(number, None, "image 'nowhere.png': not there")
        high = 10 * (number % 10 + 1)
        box = f"<|box_start|>(0,0),(100,{high})<|box_end|>"
        return Prediction(number, f"<answer>{box}</answer>")


@pytest.fixture
def rows(tmp_path):
    target = {"image": None, "box": [0, 0, 100, 100]}
    given = [
        {"images": ["a.png"], "question": f"Where is {n}?", "targets": [target]} for n in range(3)
    ]
    given[1]["images"] = ["nowhere.png"]
    given.insert(2, {"images": ["a.png"], "question": "Nothing?", "targets": [], "response": "no"})
    Image.new("RGB", (28, 28)).save(tmp_path / "a.png")
    (tmp_path / "rows.json").write_text(json.dumps(given))
    return tmp_path / "rows.json"


@pytest.fixture
def rate(rows, tmp_path, monkeypatch):
    def run(name="out", answers=4, seed=0, stop_at=None, **changes):
        config = defaults.inference()
        config.update_from_flattened_dict(changes)
        drawn = Drawn(stop_at)
        monkeypatch.setattr(Predictor, "open", drawn.open)
        found = rating.run(
            read(config),
            rating.Sampling(answers, 0.7, seed),
            checkpoint="none",
            rows=str(rows),
            image_root=str(tmp_path),
            output_dir=tmp_path / name,
        )
        return drawn, found

    return run


def test_each_row_is_answered_several_times(rate, tmp_path):
    drawn, (first, last) = rate()
    assert sorted(drawn.numbers) == list(range(12)) and drawn.temperature == 0.7
    assert first["answers"] == last["answers"] == 4 and first["source"] == "rows.json row 0"
    means = [np.arange(1, 5) / 10, np.array([0.9, 1.0, 0.1, 0.2])]  # numbers 0-3, and 8-11
    for row, ious in zip((first, last), means, strict=True):
        assert row["mean_iou"] == pytest.approx(ious.mean())
        assert row["spread"] == pytest.approx(ious.std(), abs=1e-6)
        assert row["hit_rate"] == (ious >= 0.5).mean() and not row["direct"]
    lines = [json.loads(line) for line in (tmp_path / "out/ratings.jsonl").open()]
    assert lines == [first, last]
    assert not lines[0].keys() & {"reason"}


def test_rows_that_can_t_be_rated_are_counted_and_listed(rate, rows, tmp_path, capsys):
    given = json.loads(rows.read_text())
    given.append({"images": ["a.png"], "question": "Upside down?", "targets": [{"box": [9, 9, 1]}]})
    rows.write_text(json.dumps(given))
    rate()
    listed = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").open()]
    assert [row["source"] for row in listed] == [f"rows.json row {n}" for n in (2, 4, 1)]
    assert "'targets' is empty" in listed[0]["reason"] and "nowhere.png" in listed[2]["reason"]
    said = capsys.readouterr().err
    assert (
        f"rows.json: 3 rows can't be rated and are left out; the first: {listed[0]['source']}: "
        in said
    )
    assert "all are in " in said and "rejected.jsonl" in said


def test_a_stop_signal_keeps_the_answers_so_far(rate, tmp_path, capsys):
    _, found = rate("whole")
    with pytest.raises(SystemExit) as ended:
        rate(stop_at=2)
    assert ended.value.code == 143
    assert "SIGTERM: ending; the answers so far are kept" in capsys.readouterr().err
    kept = {json.loads(line)["index"] for line in (tmp_path / "out/predictions.jsonl").open()}
    assert kept == {8, 9, 10, 11, 0, 1} and not (tmp_path / "out/ratings.jsonl").exists()
    assert (tmp_path / "out/rejected.jsonl").read_text().count("\n") == 2
    drawn, again = rate()
    assert again == found and sorted(drawn.numbers) == list(range(8))
    assert len((tmp_path / "out/predictions.jsonl").read_text().splitlines()) == 8


def test_an_interrupted_rating_goes_on_with_what_is_missing(rate, tmp_path):
    _, found = rate()
    path = tmp_path / "out/predictions.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]) + lines[3][:9])  # killed while writing
    kept = {json.loads(line)["index"] for line in lines[:3]}
    assert kept == {8, 9, 10}
    drawn, again = rate()
    assert again == found and sorted(drawn.numbers) == list(range(12))  # whole rows, as 11 lacks
    numbers = [json.loads(line)["index"] for line in path.open()]
    assert sorted(numbers) == [0, 1, 2, 3, 8, 9, 10, 11]  # but none is kept twice


def test_other_seeds_and_forms_are_other_answers(rate):
    drawn, _ = rate(seed=2)
    assert sorted(drawn.numbers) == list(range(24, 36)) and not any(drawn.directs)
    with pytest.raises(ConfigError, match="holds predictions of another run.*seed was 2, is 0"):
        rate()
    drawn, found = rate("direct", **{"evaluation.direct": True})
    assert all(drawn.directs) and all(row["direct"] for row in found)
    with pytest.raises(ConfigError, match="--seed=999999999: with 12 answers it must be below"):
        rate("far", seed=999_999_999)


def test_rows_without_targets_are_refused(rate, rows):
    rows.write_text('[{"images": ["a.png"], "question": "Where?", "targets": []}]')
    with pytest.raises(UserError, match="holds no row with targets"):
        rate()


def test_answers_about_other_images_are_not_rated(rate, tmp_path):
    rate()
    Image.new("RGB", (56, 28)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="the images of 8 answered rows have changed"):
        rate()


def test_only_answers_on_the_grid_are_rated(rate):
    with pytest.raises(ConfigError, match="evaluation.coordinates='pixels': only answers on the"):
        rate(**{"evaluation.coordinates": "pixels"})
