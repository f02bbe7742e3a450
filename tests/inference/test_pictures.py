"""Boxes drawn into images: in their places, legible, and in the image that they name."""

import json

import numpy as np
import pytest
from conftest import call
from PIL import Image

from mirg_jax.errors import DataError
from mirg_jax.grounding import grammar
from mirg_jax.grounding.boxes import fraction_to_grid
from mirg_jax.grounding.grammar import GroundedObject
from mirg_jax.inference import pictures
from mirg_jax.mig_bench.benchmark import load_benchmark


def test_draw_boxes_puts_the_outline_on_the_grid_and_leaves_the_image(tmp_path):
    image = Image.new("RGB", (400, 200), "white")
    drawn = pictures.draw_boxes(image, [pictures.Drawing((250, 500, 750, 900), "red")])
    assert np.all(np.asarray(image) == 255)
    red = np.argwhere(np.all(np.asarray(drawn) == (255, 0, 0), axis=-1))
    assert red.min(axis=0).tolist() == [100, 100] and red.max(axis=0).tolist() == [180, 300]
    assert drawn.getpixel((200, 140)) == (255, 255, 255)  # the inside is left free


def test_lines_grow_with_the_scale():
    image = Image.new("RGB", (400, 200), "white")
    drawing = pictures.Drawing((250, 500, 750, 900), "red")
    thin, thick = (
        np.sum(np.asarray(pictures.draw_boxes(image, [drawing], scale=scale))[:, :, 1] == 0)
        for scale in (1, 2)
    )
    assert 1.8 < thick / thin < 2


@pytest.mark.parametrize("box", [(250, 500, 750, 900), (0, 0, 300, 300), (900, 950, 1000, 1000)])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_captions_are_legible_and_inside_the_image(box, mode):
    image = Image.new(mode, (500, 400))
    plain = pictures.draw_boxes(image, [pictures.Drawing(box, "yellow")])
    captioned = pictures.draw_boxes(image, [pictures.Drawing(box, "yellow", "[1-1] a dog\nhere")])
    changed = np.argwhere(np.any(np.asarray(plain) != np.asarray(captioned), axis=-1))
    height, width = np.ptp(changed, axis=0) + 1
    assert height >= 10 and width >= 60
    plate = np.asarray(captioned)[changed[:, 0].min() :, changed[:, 1].min() :][:height, :width]
    dark, yellow = np.mean(plate.sum(-1) < 200), np.mean(np.all(plate == (255, 255, 0), axis=-1))
    assert dark > 0.05 and yellow > 0.4  # black ink on yellow


def test_a_caption_longer_than_the_image_is_cut():
    image = Image.new("RGB", (120, 90), "white")
    drawn = pictures.draw_boxes(image, [pictures.Drawing((0, 0, 1000, 1000), "navy", "word " * 90)])
    assert drawn.size == image.size
    assert np.any(np.all(np.asarray(drawn) == 255, axis=-1))


def test_objects_are_drawn_into_the_image_they_name(tmp_path):
    paths = [tmp_path / "small.png", tmp_path / "large.png"]
    Image.new("RGB", (56, 28), "white").save(paths[0])
    Image.new("RGB", (300, 400), "white").save(paths[1])
    objects = [
        GroundedObject((500, 500, 900, 900), image=2, label="dog"),
        GroundedObject((100, 100, 900, 900)),  # no image: the first
    ]
    sheet = pictures.draw_objects(paths, objects, ("red", "blue"))
    small = 4 * 56  # enlarged to be seen
    assert sheet.size == (small + 8 + 300, 400)
    red, blue = (
        np.argwhere(np.all(np.asarray(sheet) == colour, axis=-1))
        for colour in ((255, 0, 0), (0, 0, 255))
    )
    assert blue[:, 1].max() < small and blue[:, 0].max() < 4 * 28
    assert red[:, 1].min() == small + 8 + 150 and red.max(axis=0).tolist() == [360, small + 8 + 270]
    with pytest.raises(DataError, match="nowhere.png"):
        pictures.draw_objects([tmp_path / "nowhere.png"], [])


def test_the_picture_of_the_readme(scenes, tmp_path, refusal):
    """A hit is chosen, its images, boxes and text are drawn, the same every time."""
    (tmp_path / "scenes").symlink_to(scenes)
    (tmp_path / "grpo/eval").mkdir(parents=True)
    rows = load_benchmark(scenes / "eval.json")
    lines = []
    for index, row in enumerate(rows):
        image = row.target_image
        found = GroundedObject(fraction_to_grid(row.answer), image, 1, "one")
        other = GroundedObject((100, 100, 400, 400), 1 + image % len(row.images), 1, "other")
        thinking = f"See {grammar.format_object(other)} and {grammar.format_object(found)}."
        response = grammar.format_response(thinking, grammar.format_answer([found]))
        if row.task not in ("diff", "reasoning"):  # a miss
            response = grammar.format_response(thinking, grammar.format_answer([other]))
        lines.append(json.dumps({"index": index, "response": response + "<|im_end|>"}) + "\n")
    (tmp_path / "grpo/eval/predictions.jsonl").write_text("".join(lines))

    flags = f"--run={tmp_path}", f"--output={tmp_path}/docs/a.png"
    told = call("readme_picture", *flags)
    assert told.returncode == 0, told.stderr
    chosen = int(told.stdout.split("row ")[1].split(",")[0])
    assert rows[chosen].task == "reasoning" and len(rows[chosen].images) == 3
    made = (tmp_path / "docs/a.png").read_bytes()
    assert len(made) < 150_000
    sheet = np.asarray(Image.open(tmp_path / "docs/a.png"))
    assert sheet.shape[1] == 1200 and 500 < sheet.shape[0] < 1200
    red, blue = (np.all(sheet == colour, axis=-1) for colour in ((224, 32, 32), (45, 127, 240)))
    pictured, written = slice(0, 420), slice(420, None)
    assert red[pictured].sum() > 500 and blue[pictured].sum() > 500  # the answer, the other
    assert red[written].sum() > 200 and blue[written].sum() > 50

    assert refusal("readme_picture", *flags) == ""
    assert (tmp_path / "docs/a.png").read_bytes() == made
    assert "no such row" in refusal("readme_picture", *flags, "--row=21")
