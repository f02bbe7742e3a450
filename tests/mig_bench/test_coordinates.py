"""Pixels of resized images and the grid: what a model of pixels is asked and what it meant."""

import json

import numpy as np
import pytest
from PIL import Image

from mirg_jax import defaults
from mirg_jax.errors import ConfigError
from mirg_jax.evaluation import evaluate
from mirg_jax.inference.predictor import Prediction, Predictor
from mirg_jax.mig_bench import coordinates, scoring
from mirg_jax.runs.settings import read

SIZES = [(560, 280), (280, 840)]
ROW = {
    "task": "region",
    "question": "The object at <|box_start|>(100,200),(500,1000)<|box_end|> of image-2: "
    "locate it in the first image.",
    "images": ["a.png", "b.png"],
    "answer": [0.1, 0.2, 0.5, 0.9],
}


def test_a_box_of_the_question_is_in_pixels_of_the_image_named_before_it():
    row = ROW | {"question": "Image-2 has <|box_start|>(100,200),(500,1000)<|box_end|>."}
    found = coordinates.question_in_pixels(row, SIZES)
    assert found == "Image-2 has [28, 168, 140, 840]."
    assert "[56, 56, 280, 280]" in coordinates.question_in_pixels(ROW, SIZES)


@pytest.mark.parametrize(
    "response",
    [
        '```json\n[{"bbox_2d": [56, 56, 280, 252], "label": "ring"}]\n```',
        "(56,56),(280,252)",
        "<|box_start|>( 56, 56 ), (280, 252)<|box_end|>",
    ],
)
def test_a_response_is_read_in_pixels_of_the_row_s_image(response):
    read = coordinates.response_on_grid(ROW, response, SIZES)
    assert "<|box_start|>(100,200),(500,900)<|box_end|>" in read
    scores = scoring.score([ROW], [read])
    assert scores.overall.mean_iou == pytest.approx(1)
    assert scoring.score([ROW], [response]).overall.mean_iou < 0.5
    other = coordinates.response_on_grid(ROW, f"In image 2: {response}", SIZES)
    assert "(200,67),(1000,300)" in other  # of its width 280 and height 840
    past = coordinates.response_on_grid(ROW, response.replace("280", "580"), SIZES)
    assert "(100,200),(1000,900)" in past


def test_sizes_are_those_of_the_model_s_own_rule(tmp_path):
    for name, size in (("a.png", (600, 300)), ("b.png", (20, 20))):
        Image.fromarray(np.zeros((*size[::-1], 3), np.uint8)).save(tmp_path / name)
    config = defaults.inference()
    assert coordinates.sizes(ROW, str(tmp_path), config) == [(588, 308), (56, 56)]
    config.data.max_pixels = 50176
    assert coordinates.sizes(ROW, str(tmp_path), config)[0] == (308, 140)
    (tmp_path / "b.png").unlink()
    assert coordinates.sizes(ROW, str(tmp_path), config) == []
    assert coordinates.question_in_pixels(ROW, []) == ROW["question"]


def test_names():
    config = defaults.inference()
    assert read(config).evaluation.coordinates == "grid"
    config.evaluation.coordinates = "percent"
    with pytest.raises(ConfigError, match="none of grid, pixels"):
        read(config)


def test_a_model_of_pixels_is_asked_and_scored_in_pixels(monkeypatch, recipe, tiny_model, tmp_path):
    """Both ways from the binary's function: only the drawing of tokens is a stand-in."""
    for name, size in (("a.png", (600, 300)), ("b.png", (300, 900))):
        Image.fromarray(np.zeros((*size[::-1], 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "rows.json").write_text(json.dumps([ROW]))
    asked = []

    def answer(self, examples):
        for index, example in examples:
            asked.append(example.question)
            assert self._preparer(example).images[0].grid == (308 // 14, 588 // 14)
            yield Prediction(index, "<think>t</think><answer>[59, 62, 294, 277]</answer>")

    monkeypatch.setattr(Predictor, "predict", answer)
    config = recipe("grpo")
    config.data.max_pixels = 1003520
    config.data.shapes.update(lengths=(1024,), slots=(1024,), patches=(4096,))
    given = {"checkpoint": str(tiny_model), "benchmark": str(tmp_path / "rows.json")}

    def run(name, folder=None):
        config.evaluation.coordinates = name
        output = tmp_path / (folder or name)
        return evaluate.run(read(config), **given, image_root=str(tmp_path), output_dir=output)

    assert run("pixels").overall.accuracy[0.75] == 1
    assert "[59, 62, 294, 308]" in asked[-1]  # of 588 x 308
    assert run("grid").overall.accuracy[0.5] == 0
    assert asked[-1] == ROW["question"]
    kept = json.loads((tmp_path / "pixels/predictions.jsonl").read_text())
    assert "[59, 62, 294, 277]" in kept["response"]  # as the model said it
    with pytest.raises(ConfigError, match="another run"):
        evaluate.run(
            read(config), **given, image_root=str(tmp_path), output_dir=tmp_path / "pixels"
        )
