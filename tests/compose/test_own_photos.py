"""The demo's scenes and real photos go through the composer; what comes out can be trained on."""

import collections
import json
import pathlib
import re
import shutil
from typing import NamedTuple

import pytest
from conftest import train
from PIL import Image
from real_checks import Checks, read_asked

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


MAX_PIXELS = 40_000
MOVED = 40  # of 1000: how far a wrong answer is moved


class Real(NamedTuple):
    """What was composed of the real photos, and the labels that it was composed of."""

    folder: pathlib.Path
    photos: pathlib.Path
    things: dict[str, set]
    manifest: dict


@pytest.fixture(
    scope="module",
    params=[(20, 10), pytest.param((1000, 100), marks=pytest.mark.slow)],
    ids=lambda each: f"{each[0]}",
)
def real(request, shared, tmp_path_factory):
    photos = shared("real_photos")
    folder = tmp_path_factory.mktemp("real")
    labels, things = coco_of(photos, "train.json")
    (folder / "labels.json").write_text(json.dumps(labels))
    made = compose.Settings(
        (Source("coco", folder / "labels.json"),),
        ImageRoot(photos),
        {"sft": request.param[0], "rl": 0, "eval": request.param[1]},
        eval_share=0.3,
        max_pixels=MAX_PIXELS,
    )
    return Real(folder / "out", photos, things, compose.compose(made, folder / "out"))


def examples_of(real):
    """The examples for training, then those for evaluation."""
    evaluated = json.loads((real.folder / "eval.json").read_text())
    yield from (read_asked(row, real.folder) for row in (*rows_of(real.folder), *evaluated))


def test_real_photos_are_composed(real):
    assert sum(real.manifest["photos"].values()) == len(real.things) >= 40
    rows = rows_of(real.folder)
    assert {row["task"] for row in rows} == set(COMPOSERS)
    evaluated = json.loads((real.folder / "eval.json").read_text())
    used = [{path for row in each for path in row["photos"]} for each in (rows, evaluated)]
    assert used[0] and used[1] and not used[0] & used[1]
    checks = Checks(real.photos, real.things, MAX_PIXELS)
    for asked in examples_of(real):
        checks.check(asked)
    assert set(checks.counts) == set(COMPOSERS)
    assert checks.counts.total() == len(rows) + len(evaluated)


def test_wrong_answers_about_real_photos_are_seen(real):
    """The checks of `real_checks` fail where the box is beside the object, or in another image."""
    checks = Checks(real.photos, real.things, MAX_PIXELS)
    first = {asked.task: asked for asked in reversed(list(examples_of(real)))}
    for task, asked in first.items():
        x1, y1, x2, y2 = asked.box
        by = MOVED if x2 + MOVED <= 1000 else -MOVED
        wrong = [asked._replace(box=(x1 + by, y1, x2 + by, y2))]
        if task != "diff":  # there both images have the same box
            wrong.append(asked._replace(image=asked.image % len(asked.shown) + 1))
        for each in wrong:
            with pytest.raises((AssertionError, IndexError, ValueError)):
                checks.check(each)


def test_a_second_difference_between_real_photos_is_seen(real):
    checks = Checks(real.photos, real.things, MAX_PIXELS)
    asked = next(each for each in examples_of(real) if each.task == "view_diff")
    changed = [pixels.copy() for pixels in asked.shown]
    x1, y1, *_ = map(round, asked.pixels_box())
    place = (slice(-12, None) if y1 > 40 else slice(12)), slice(x1, x1 + 12)
    changed[asked.image - 1][place] ^= 64
    checks.check(asked)
    with pytest.raises(AssertionError):
        checks.check(asked._replace(shown=changed))


def test_real_frames_are_tracked(shared, tmp_path):
    """Frames of a video with a box each, as LaSOT has them."""
    photos = shared("real_photos")
    truth = {}
    for row in json.loads((photos / "train.json").read_text()):
        found = re.search(r"\((\d+),(\d+)\),\((\d+),(\d+)\)", row["conversations"][0]["value"])
        if row["images"][0].startswith("images/frames") and found:
            path = row["images"][0].replace("_red", "")
            truth[path] = tuple(map(int, found.groups()))
    (tmp_path / "bag-1/img").mkdir(parents=True)
    lines, things = [], {}
    for path, box in sorted(truth.items()):
        if not (photos / path).exists():
            continue
        copy = tmp_path / "bag-1/img" / path.rpartition("/")[2]
        shutil.copy(photos / path, copy)
        x1, y1, x2, y2 = grid_to_pixels(box, *Image.open(copy).size)
        lines.append(f"{x1},{y1},{x2 - x1},{y2 - y1}")
        things[str(copy.relative_to(tmp_path))] = {("bag", box)}
    (tmp_path / "bag-1/groundtruth.txt").write_text("\n".join(lines))
    assert len(things) >= 30
    made = compose.Settings(
        (Source("lasot", tmp_path / "bag-1"),),
        ImageRoot(tmp_path),
        {"sft": 20, "rl": 0, "eval": 0},
        tasks=("object_tracking",),
        eval_share=0.0,
        max_pixels=MAX_PIXELS,
    )
    compose.compose(made, tmp_path / "out")
    checks = Checks(tmp_path, things, MAX_PIXELS)
    of_tracks = 0
    for row in rows_of(tmp_path / "out"):
        asked = read_asked(row, tmp_path / "out")
        checks.check(asked)
        if len(asked.photos) > 1:
            of_tracks += 1
            with pytest.raises(AssertionError):
                checks.check(asked._replace(photos=asked.photos[::-1]))
    assert of_tracks >= 10
