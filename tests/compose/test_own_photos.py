"""The demo's scenes and real photos go through the composer; what comes out can be trained on."""

import collections
import json
import re

import numpy as np
import pytest
from conftest import train
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from mirg_jax.compose import compose
from mirg_jax.compose.sources import Source
from mirg_jax.compose.tasks import COMPOSERS
from mirg_jax.data.examples import read_examples
from mirg_jax.data.images import ImageRoot
from mirg_jax.grounding.boxes import grid_to_pixels


def rows_of(folder, name="sft"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").open()]


@pytest.fixture(scope="module")
def composed_scenes(scenes, tmp_path_factory):
    """All ten tasks, of pictures of the demo's trajectories, whose thoughts name all objects."""
    folder = tmp_path_factory.mktemp("composed")
    made = compose.Settings(
        (Source("rows", scenes / "sft.jsonl", complete=True),),
        ImageRoot(scenes),
        {"sft": 40, "rl": 20, "eval": 0},
        eval_share=0.0,
        seed=2,
    )
    manifest = compose.compose(made, folder)
    (left_out,) = manifest["labels_left_out"]
    assert left_out["reason"] == "rows: the images are copies, crops or views of others"
    return folder


def test_scenes_give_all_ten_tasks(composed_scenes):
    found = collections.Counter(row["task"] for row in rows_of(composed_scenes))
    assert set(found) == set(COMPOSERS) and min(found.values()) >= 3
    assert any("colour" in row["question"] for row in rows_of(composed_scenes))
    page = (composed_scenes / "report.html").read_text("utf-8")
    assert page.count("image/webp") or "picture-0" in page
    for row in rows_of(composed_scenes)[:5]:
        assert row["id"] in page


@pytest.mark.slow
def test_composed_rows_are_trained_on(composed_scenes, recipe, tmp_path):
    config = recipe(
        "sft",
        **{
            "data.train_json": str(composed_scenes / "sft.jsonl"),
            "data.image_root": str(composed_scenes),
            "data.shapes.lengths": (640,),
            "data.shapes.slots": (6,),
            "data.shapes.patches": (64,),
            "data.max_pixels": 3136,
            "num_steps": 1,
            "batch_size": 16,
            "rows_per_micro_batch": 2,
        },
    )
    train(config, tmp_path / "run")
    (step,) = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert step["rejected"] == 0 and 0 < step["loss"] < 20


# Real photos --------------------------------------------------------------------------------------


def coco_of(photos, name):
    """In COCO's form what rows of whole photos name; and by file, names and boxes on the grid."""
    examples, _ = read_examples(photos / name)
    found = collections.defaultdict(set)
    for example in examples:
        asked = re.findall(r"ref_start\|>(?:an? |the )?([^<]*)<", example.question)
        for target in example.targets:
            path = example.images[(target.image or 1) - 1]
            label = re.sub("^(an?|the) ", "", target.label) or (asked[0] if asked else "")
            if path.startswith("images/photos/") and target.image and label:
                found[path].add((label, target.box))
    names = sorted({label for things in found.values() for label, _ in things})
    rows = {"categories": [{"id": n, "name": name} for n, name in enumerate(names)]}
    rows |= {"images": [], "annotations": []}
    for number, (path, things) in enumerate(sorted(found.items())):
        rows["images"].append({"id": number, "file_name": path})
        width, height = Image.open(photos / path).size
        for label, box in sorted(things):
            x1, y1, x2, y2 = grid_to_pixels(box, width, height)
            row = {"image_id": number, "category_id": names.index(label)}
            rows["annotations"].append(row | {"bbox": [x1, y1, x2 - x1, y2 - y1]})
    return rows, found


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_real_photos_are_composed(shared, tmp_path, count):
    photos = shared("real_photos")
    labels, things = coco_of(photos, "train.json")
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    made = compose.Settings(
        (Source("coco", tmp_path / "labels.json"),),
        ImageRoot(photos),
        {"sft": count, "rl": 0, "eval": 10},
        eval_share=0.3,
        max_pixels=40_000,
    )
    manifest = compose.compose(made, tmp_path / "out")
    assert sum(manifest["photos"].values()) == len(things) >= 40
    rows = rows_of(tmp_path / "out")
    assert {row["task"] for row in rows} == set(COMPOSERS)
    evaluated = json.loads((tmp_path / "out/eval.json").read_text())
    used = [{path for row in each for path in row["photos"]} for each in (rows, evaluated)]
    assert used[0] and used[1] and not used[0] & used[1]
    for row in rows:
        check_real(row, things, tmp_path / "out")


def check_real(row, things, folder):
    """By the labels that were given, and by the pixels of edited copies and of parts."""
    (target,) = row["targets"]
    label, box, task = target["label"], tuple(target["box"]), row["task"]
    names = [[name for name, _ in things[path]] for path in row["photos"]]
    shown = [np.asarray(Image.open(folder / path).convert("RGB")) for path in row["images"]]
    height, width = shown[target["image"] - 1].shape[:2]
    if task == "group_grounding":
        assert [label in each for each in names].count(True) == 1
    if task == "common_object":
        assert set.intersection(*map(set, names)) == {label}
    if task in ("group_grounding", "common_object"):
        asked = target["image"] - 1
    elif task == "correspondence" or (task == "refer_grounding" and "kind" in row["question"]):
        asked = 1
    elif task == "refer_grounding":
        asked = target["image"] - 2  # the close view is no photo
        assert [label in each for each in names].count(True) == 1
    elif task == "reasoning":
        asked = target["image"] - 1
    else:
        asked = None
    if asked is not None:
        own = [found for name, found in things[row["photos"][asked]] if name == label]
        off = [np.abs(np.subtract(found, box)).max() for found in own]
        assert min(off) <= 1
        assert len(own) == 1 or re.search(
            "leftmost|rightmost|topmost|lowest|largest", row["question"]
        )
    if task == "diff":
        one, other = shown
        ys, xs = np.nonzero((one != other).any(axis=-1))
        found = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
        assert np.abs(np.subtract(found, grid_to_pixels(box, width, height))).max() <= 0.6
    if task == "region":
        n = int(re.search(r"(\d)(?:th region|\b in the source)", row["question"])[1])
        part, (x1, y1, x2, y2) = shown[n], np.rint(grid_to_pixels(box, width, height)).astype(int)
        assert part.shape == (y2 - y1, x2 - x1, 3)
        assert np.array_equal(shown[0][y1:y2, x1:x2], part)
        rivals = sliding_window_view(shown[0][..., 0], part.shape[:2])
        ys, xs = np.nonzero(rivals[..., 0, 0] == part[0, 0, 0])
        same = [p for p in zip(ys, xs, strict=True) if (rivals[p] == part[..., 0]).all()]
        assert same == [(y1, x1)]
