"""Labels of drawn pictures say what is drawn, and where."""

import json

import numpy as np
from PIL import Image

from mirg_jax.scenes.drawing import COLOURS, SHAPES
from mirg_jax.scenes.labelled import write_labelled


def test_labels_are_what_is_drawn(tmp_path):
    write_labelled(tmp_path, seed=5, count=40)
    labels = json.loads((tmp_path / "instances.json").read_text())
    assert [each["name"] for each in labels["categories"]] == list(SHAPES)
    assert len(labels["images"]) == 40 < len(labels["annotations"])
    pixels = [
        np.asarray(Image.open(tmp_path / "images" / each["file_name"])) / 255
        for each in labels["images"]
    ]
    covered = [np.zeros((56, 56), bool) for _ in pixels]
    for row in labels["annotations"]:
        x1, y1, width, height = row["bbox"]
        rows = slice(int(y1), int(np.ceil(y1 + height)))
        columns = slice(int(x1), int(np.ceil(x1 + width)))
        covered[row["image_id"]][rows, columns] = True
        inside = pixels[row["image_id"]][rows, columns]
        apart = np.abs(inside - COLOURS[row["attributes"]["color"]]).max(axis=-1) < 0.2
        assert apart.mean() > 0.2
        if labels["categories"][row["category_id"] - 1]["name"] == "ring":  # open in the middle
            assert not apart[apart.shape[0] // 2, apart.shape[1] // 2]
    # Beside the boxes there is nothing but a light ground.
    for picture, under in zip(pixels, covered, strict=True):
        assert picture[~under].min() > 0.5


def test_the_same_seed_draws_the_same(tmp_path):
    for name in ("one", "other"):
        write_labelled(tmp_path / name, seed=1, count=3)
    assert (tmp_path / "one/instances.json").read_text() == (
        tmp_path / "other/instances.json"
    ).read_text()
    for path in (tmp_path / "one/images").iterdir():
        assert path.read_bytes() == (tmp_path / "other/images" / path.name).read_bytes()
