"""Evaluating a checkpoint that speaks of pixels: what it is asked and what it meant."""

import json

import numpy as np
import pytest
from bench_rows import rows_of
from PIL import Image

from mirg_jax import defaults
from mirg_jax.errors import ConfigError, DataError
from mirg_jax.evaluation import evaluate
from mirg_jax.inference.predictor import Prediction, Predictor
from mirg_jax.mig_bench import families, prompts, scoring, tables
from mirg_jax.runs.settings import read

SIZES = {"a.png": (560, 280), "b.png": (280, 840)}
BOX = "<|box_start|>(100,200),(500,1000)<|box_end|>"
CONTENT = {
    "task": "region",
    "question": f"The object at {BOX} of image-2: locate it in the first image.",
    "images": ["a.png", "b.png"],
    "answer": [0.1, 0.2, 0.5, 0.9],
}
(ROW,) = rows_of([CONTENT])
PIXELS = families.of_coordinates("pixels")


def asked(question):
    return prompts.rewrite(PIXELS, question, ROW.images, SIZES.__getitem__)


def on_grid(response):
    return families.to_grammar(PIXELS, response, ROW, SIZES.__getitem__)


def test_a_box_of_the_question_is_in_pixels_of_the_image_named_before_it():
    found = asked(f"Image-2 has {BOX}.")
    assert found == "Image-2 has [28, 168, 140, 840]."
    assert "[28, 168, 140, 840]" in asked(ROW.question)  # behind it
    assert "[56, 56, 280, 280]" in asked(f"Image 2 shows a dog. That at {BOX} in image 1?")
    assert "[28, 168, 140, 840]" in asked(f"Image 2 shows a dog. Where is that at {BOX}?")


def test_a_box_of_the_question_of_which_the_image_is_not_said():
    for question in (f"Where is {BOX}?", f"In image 7, {BOX}?"):
        with pytest.raises(prompts.UnclearQuestionError, match="which of its 2 images"):
            asked(question)
    found = prompts.rewrite(PIXELS, f"Where is {BOX}?", ROW.images, lambda path: (560, 280))
    assert found == "Where is [56, 56, 280, 280]?"  # the images are of one size


@pytest.mark.parametrize(
    "response",
    [
        '```json\n[{"bbox_2d": [56, 56, 280, 252], "label": "ring"}]\n```',
        "(56,56),(280,252)",
        "<|box_start|>( 56, 56 ), (280, 252)<|box_end|>",
    ],
)
def test_a_response_is_read_in_pixels_of_the_row_s_image(response):
    assert "<|box_start|>(100,200),(500,900)<|box_end|>" in on_grid(response)
    scores = scoring.score([ROW], [on_grid(response)])
    assert scores.overall.mean_iou == pytest.approx(1)
    assert scoring.score([ROW], [response]).overall.mean_iou < 0.5
    # Of the other image's width 280 and height 840.
    assert "(200,67),(1000,300)" in on_grid(f"In image 2: {response}")
    assert "(100,200),(1000,900)" in on_grid(response.replace("280", "580"))


def test_sizes_are_those_of_the_model_s_own_rule(tmp_path):
    for name, size in (("a.png", (600, 300)), ("b.png", (20, 20))):
        Image.fromarray(np.zeros((*size[::-1], 3), np.uint8)).save(tmp_path / name)
    data = defaults.inference().data
    size_of = families.sizes_given(str(tmp_path), data.max_pixels, data.min_pixels)
    assert [size_of(name) for name in ROW.images] == [(588, 308), (56, 56)]
    assert families.sizes_given(str(tmp_path), 50176, data.min_pixels)("a.png") == (308, 140)
    given = evaluate.row_for(PIXELS, ROW, size_of)
    assert given.question == ROW.question.replace(BOX, "[6, 11, 28, 56]")
    (tmp_path / "b.png").unlink()
    # It is rejected, with the reason, where its images are loaded.
    assert evaluate.row_for(PIXELS, ROW, size_of) == ROW


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
    (tmp_path / "rows.json").write_text(json.dumps([CONTENT]))
    questions = []

    def answer(self, examples):
        for index, example in examples:
            questions.append(example.question)
            grids = [image.grid for image in self._preparer(example).images]
            assert (308 // 14, 588 // 14) in grids
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
    assert "[31, 179, 154, 896]" in questions[-1]  # of 308 x 896
    assert run("grid").overall.accuracy[0.5] == 0
    assert questions[-1] == ROW.question
    kept = json.loads((tmp_path / "pixels/predictions.jsonl").read_text())
    assert "[59, 62, 294, 277]" in kept["response"]  # as the model said it
    with pytest.raises(ConfigError, match="another run"):
        evaluate.run(
            read(config), **given, image_root=str(tmp_path), output_dir=tmp_path / "pixels"
        )
    # It isn't asked where a box of the question is in pixels of nobody knows which image.
    rows = [CONTENT, CONTENT | {"question": f"What is at {BOX}? Find it in image 1."}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert run("pixels", "unclear").missing == 1 and len(questions) == 3
    rejected = (tmp_path / "unclear/rejected.jsonl").read_text()
    assert "which of its 2 images" in json.loads(rejected)["reason"]
    # Of two answered rows, the image of one has gone since; then those of both.
    rows = [CONTENT, CONTENT | {"images": ["b.png", "a.png"]}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert run("pixels", "two").missing == 0
    monkeypatch.setattr(Predictor, "open", None)
    (tmp_path / "b.png").unlink()
    scores = run("pixels", "two")
    assert (scores.missing, scores.rows[0].hit, scores.rows[1].hit) == (1, True, False)
    assert "b.png" in scores.unreadable[1] and "1 responses in pixels" in tables.notes(scores)[0]
    assert "b.png" in json.loads((tmp_path / "two/scores.json").read_text())["unreadable"]["1"]
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match="no response can be scored; the first: .*a.png"):
        run("pixels", "two")
