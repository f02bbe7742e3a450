"""`mirg_jax.load`: a model opened once, asked in Python."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image

import mirg_jax
from configs import grpo_tiny
from mirg_jax.data.images import load_image
from mirg_jax.errors import CheckpointError, DataError
from mirg_jax.grounding.grammar import GroundedObject, format_object
from mirg_jax.runs.settings import read

QUESTIONS = ["Where is the red circle?", "Where is the blue ring in image 2?"]
SAID = (
    "<think>One.</think><answer><bbox_id>[2-1]</bbox_id><|object_ref_start|>ring"
    "<|object_ref_end|><|box_start|>(250,500),(750,1000)<|box_end|></answer><|im_end|>"
)


@pytest.fixture(scope="module")
def model(tiny_model):
    config = grpo_tiny.get_config()
    config.cpu_devices, config.evaluation.max_tokens = 0, 8
    return mirg_jax.load(tiny_model, settings=read(config))


@pytest.fixture(scope="module")
def paths(scenes):
    return [scenes / "images" / f"eval_00003_{n}.png" for n in (1, 2)]


def test_files_pictures_and_arrays_are_the_same_images(model, paths):
    pictures = [load_image(path.parent, path.name) for path in paths]
    forms = [paths, [str(path) for path in paths], pictures, list(map(np.asarray, pictures))]
    answers = [model.ground(form, QUESTIONS[0]) for form in forms]
    assert len({answer.text for answer in answers}) == 1 and answers[0].text
    assert [image.size for image in answers[-1].images] == [image.size for image in pictures]


def test_several_questions_are_answered_in_order(model, paths):
    together = model.ground(paths, QUESTIONS)
    alone = [model.ground(paths, question) for question in QUESTIONS]
    assert [answer.text for answer in together] == [answer.text for answer in alone]


def test_what_was_said_is_typed_and_drawn(paths):
    pictures = [Image.new("RGB", (200, 100)), Image.new("RGB", (40, 80))]
    answer = mirg_jax.GroundedAnswer.parse(SAID, pictures)
    assert answer.objects == (GroundedObject((250, 500, 750, 1000), 2, 1, "ring"),)
    assert answer.format_ok and answer.text.endswith("</answer>")
    named = SAID.replace("One.", f"{format_object(answer.objects[0])}.").replace(
        "<|object_ref_start|>ring<|object_ref_end|><|box_start|>(250,500),(750,1000)<|box_end|></answer>",
        "<|box_start|>(250,500),(750,1000)<|box_end|></answer>",
    )
    assert mirg_jax.GroundedAnswer.parse(named, pictures).objects == answer.objects
    assert answer.boxes_in_pixels() == [(2, (10, 40, 30, 80))]
    drawn = np.asarray(answer.draw())
    red = (drawn == (255, 0, 0)).all(-1)
    assert red.any() and not red[:, :200].any()  # in the second image alone


def test_what_cannot_be_used_is_said_in_a_line(model, paths, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        model.ground([tmp_path / "nowhere.png"], QUESTIONS[0])
    with pytest.raises(DataError, match="float32"):
        model.ground([np.zeros((28, 28, 3), np.float32)], QUESTIONS[0])
    for bad, words in (
        (np.zeros((28, 28, 5), np.uint8), "give \\[height, width, 3\\]"),
        (np.zeros((0, 0, 3), np.uint8), "0x0"),
        (np.zeros((1, 1000, 3), np.uint8), "narrower than 1:200"),
        (Image.new("F", (28, 28)), "no known range"),
        (None, "is a NoneType"),
    ):
        with pytest.raises(DataError, match=words):
            model.ground([bad], QUESTIONS[0])
    for question, words in ((None, "no text"), ([1], "no text"), ("\ud800", "surrogate")):
        with pytest.raises(DataError, match=words):
            model.ground(paths, question)
    for images in ([], "a.png"):
        with pytest.raises(DataError, match="no list of images"):
            model.ground(images, QUESTIONS[0])
    with pytest.raises(DataError, match="control token"):
        model.ground(paths, "<|im_start|>")
    with pytest.raises(CheckpointError):
        mirg_jax.load(tmp_path)


def test_importing_it_is_cheap():
    code = "import sys, mirg_jax; print(sorted({'jax', 'numpy', 'flax'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
    assert set(mirg_jax.__all__) == {"GroundedAnswer", "GroundedObject", "Predictor", "load"}
    assert all(getattr(mirg_jax, name) for name in mirg_jax.__all__)


def test_an_answer_ends_with_any_end_token_of_the_models_files(model, paths, tiny_model, tmp_path):
    before = model.ground(paths, QUESTIONS[0]).text
    ids = model.tokenizer.encode(before, add_special_tokens=False)
    end = next(number for number in ids[1:] if number != ids[0])
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, end]}))
    config = grpo_tiny.get_config()
    config.cpu_devices, config.evaluation.max_tokens = 0, 8
    after = mirg_jax.load(folder, settings=read(config)).ground(paths, QUESTIONS[0]).text
    kept = ids[: ids.index(end)]
    assert model.tokenizer.encode(after, add_special_tokens=False) == kept
