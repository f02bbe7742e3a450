"""Composed data sets, checked by pixel and label without the code that composed them.

Of each source a few examples of every task; in the slow tests, 1,000.
"""

import collections
import json
import pathlib
import re
from typing import NamedTuple

import numpy as np
import pytest
import small_world
from PIL import Image
from place_views import find_window
from small_world import in_pixels, near, settings

from mirg_jax.compose import compose
from mirg_jax.compose.tasks import COMPOSERS
from mirg_jax.data.examples import read_examples
from mirg_jax.data.named_images import find_asked_image
from mirg_jax.grounding.tasks import MIG_BENCH_TASKS
from mirg_jax.scenes.labelled import write_labelled

FEW = {"sft": 80, "rl": 20, "eval": 20}
MANY = {"sft": 800, "rl": 200, "eval": 100}
WRITE = {
    "generated": lambda folder, photos: small_world.write(
        folder, seed=3, photos=photos, attributes=True
    ),
    "scenes": lambda folder, photos: write_labelled(folder, seed=3, count=photos),
}


@pytest.fixture(
    scope="module",
    params=[
        ("generated", 70, FEW),
        ("scenes", 70, FEW),
        pytest.param(("generated", 500, MANY), marks=pytest.mark.slow),
        pytest.param(("scenes", 500, MANY), marks=pytest.mark.slow),
    ],
    ids=lambda each: f"{each[0]}_{sum(each[2].values())}",
)
def world(request, tmp_path_factory):
    """Photos, their labels by file name, what was composed of them, and how many were asked for."""
    source, photos, counts = request.param
    folder = tmp_path_factory.mktemp("world")
    WRITE[source](folder / "in", photos)
    coco = json.loads((folder / "in/instances.json").read_text())
    names = {each["id"]: each["name"] for each in coco["categories"]}
    files = {each["id"]: each["file_name"] for each in coco["images"]}
    labels = collections.defaultdict(list)
    for row in coco["annotations"]:
        x, y, w, h = row["bbox"]
        labels[files[row["image_id"]]].append(
            (names[row["category_id"]], row["attributes"]["color"], (x, y, x + w, y + h))
        )
    manifest = compose.compose(settings(folder / "in", counts=counts), folder / "out")
    return World(folder, labels, manifest, counts)


class World(NamedTuple):
    folder: pathlib.Path
    labels: dict[str, list[tuple[str, str, tuple[float, ...]]]]
    manifest: dict
    counts: dict[str, int]


def all_rows(folder):
    for name in ("sft", "rl"):
        yield from map(json.loads, (folder / "out" / f"{name}.jsonl").open())


def of_task(world, task):
    found = [row for row in all_rows(world.folder) if row["task"] == task]
    asked = (world.counts["sft"] + world.counts["rl"]) // 10
    assert 0.9 * asked <= len(found) <= asked  # the same question twice is left out
    return found, world.labels


def pixels_of(world, row):
    return [np.asarray(Image.open(world.folder / "out" / path)) for path in row["images"]]


def photo(world, name):
    return np.asarray(Image.open(world.folder / "in" / name))


def named(row):
    """For whole photos, the names of their files."""
    return [path.rpartition("/")[2] for path in row["images"]]


def answers(world, row, name):
    """The labels of a photo at the answer's box."""
    size = photo(world, f"images/{name}").shape[1::-1]
    return [each for each in world.labels[name] if near(each[2], in_pixels(row, size))]


def test_all_ten_tasks_are_composed(world):
    assert set(COMPOSERS) == set(MIG_BENCH_TASKS)
    for file, tasks in world.manifest["files"].items():
        asked = world.counts[file.partition(".")[0]] // 10
        for task, row in tasks.items():
            assert row["asked"] == asked
            assert row["examples"] + row["repeated"] == asked, (file, task, row)


def test_files_are_read_back_as_they_were_written(world):
    folder = world.folder
    for name in ("sft.jsonl", "rl.jsonl", "eval.json"):
        examples, rejected = read_examples(folder / "out" / name)
        made = sum(row["examples"] for row in world.manifest["files"][name].values())
        assert not rejected and len(examples) == made
        for example in examples:
            assert example.direct is (True if name == "sft.jsonl" else None)
            (target,) = example.targets
            assert 1 <= target.image <= len(example.images)
            asked = find_asked_image(example.question, len(example.images)).image
            assert asked in (None, target.image), example.question


def test_no_photo_is_in_train_and_eval(world):
    folder = world.folder
    rows = json.loads((folder / "out/eval.json").read_text())
    evaluated = {path for row in rows for path in row["photos"]}
    trained = {path for row in all_rows(folder) for path in row["photos"]}
    assert trained and evaluated and not trained & evaluated


def test_images_of_an_example_are_written_alike(world):
    """Where one image is made, all are, by the same encoder with the same settings."""
    folder = world.folder
    for row in all_rows(folder):
        kinds = {path.partition("/")[0] for path in row["images"]}
        assert len(kinds) == 1
        if kinds == {"made"}:
            told = set()
            for path in row["images"]:
                data = (folder / "out" / path).read_bytes()
                # The order of chunks, and the header of the compressed data.
                chunks = re.findall(rb"IHDR|IDAT|IEND|tEXt|gAMA|pHYs|eXIf", data)
                told.add((tuple(dict.fromkeys(chunks)), data[24:29]))
            assert len(told) == 1


def test_differences_are_where_the_answer_says(world):
    rows, _ = of_task(world, "diff")
    which = set()
    for row in rows:
        one, other = pixels_of(world, row)
        changed = (one != other).any(axis=-1)
        ys, xs = np.nonzero(changed)
        box = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
        assert near(box, in_pixels(row, one.shape[1::-1]), 0.6)
        # Of the photo itself, one image is an exact copy, the other is outside of the box.
        original = photo(world, row["photos"][0])
        same = [np.array_equal(each, original) for each in (one, other)]
        assert sorted(same) == [False, True]
        edited = (one, other)[same.index(False)]
        assert np.array_equal(edited[~changed], original[~changed])
        strong = np.abs(edited.astype(int) - original).max(axis=-1) >= 24
        assert strong[box[1] : box[3], box[0] : box[2]].mean() > 0.3
        which.add(same.index(False))
    assert which == {0, 1}  # either order


def test_robust_differences_are_where_the_answer_says(world):
    """The view is laid over the photo again; apart from the light, only the answer differs."""
    rows, _ = of_task(world, "view_diff")
    viewed = set()
    for row in rows:
        shown = pixels_of(world, row)
        original = photo(world, row["photos"][0])

        def is_whole(pixels, original=original):
            """Whether a picture is the photo but for the edit; a view may have its size."""
            return pixels.shape == original.shape and (pixels == original).mean() > 0.6

        whole, view = sorted(shown, key=is_whole, reverse=True)
        assert is_whole(whole) and not is_whole(view)
        image = row["targets"][0]["image"]
        viewed.add(shown[image - 1] is view)
        free = 0.01 if shown[image - 1] is view else 0.14  # what the window may shift it
        x1, y1, x2, y2 = (side / 1000 for side in row["targets"][0]["box"])
        hidden = x1 - free, y1 - free, x2 + free, y2 + free
        window = find_window(view, whole, np.arange(0.84, 1.12, 0.04), [False], hidden)
        x, y, right, bottom = map(round, window.box)
        w, h = right - x, bottom - y
        back = np.asarray(Image.fromarray(view).resize((w, h), Image.Resampling.BICUBIC))
        under, apart = whole[y : y + h, x : x + w].astype(float), np.zeros((h, w))
        x1, y1, x2, y2 = in_pixels(row, shown[image - 1].shape[1::-1])
        if shown[image - 1] is view:
            by = w / view.shape[1], h / view.shape[0]
            x1, y1, x2, y2 = x1 * by[0], y1 * by[1], x2 * by[0], y2 * by[1]
        else:
            x1, y1, x2, y2 = x1 - x, y1 - y, x2 - x, y2 - y
        inside = np.zeros((h, w), bool)
        inside[round(y1) : round(y2), round(x1) : round(x2)] = True
        for channel in range(3):  # the light by channel
            a, b = back[..., channel].ravel(), under[..., channel].ravel()
            slope, start = np.polyfit(a[~inside.ravel()], b[~inside.ravel()], 1)
            apart += np.abs(a * slope + start - b).reshape(h, w)
        assert apart[inside].mean() > 1.5 * apart[~inside].mean()
    assert viewed == {True, False}


def locate(patch, pixels):
    """Where a patch is in a picture, pixel by pixel."""
    height, width = patch.shape[:2]
    ys, xs = np.nonzero((pixels == patch[0, 0]).all(axis=-1))
    return [
        (int(x), int(y))
        for y, x in zip(ys, xs, strict=True)
        if np.array_equal(pixels[y : y + height, x : x + width], patch)
    ]


def test_regions_are_in_one_place_only(world):
    rows, _ = of_task(world, "region")
    for row in rows:
        source, *parts = pixels_of(world, row)
        n = int(re.search(r"(\d)(?:th region|\b in the source)", row["question"])[1])
        ((x, y),) = locate(parts[n - 1], source)
        height, width = parts[n - 1].shape[:2]
        box = x, y, x + width, y + height
        assert row["targets"][0]["image"] == 1
        assert near(box, in_pixels(row, source.shape[1::-1]), 0.6)


def test_tracked_objects_are_at_the_answer(world):
    """Frames are windows of a photo: where each is, by its pixels, tells where the object is."""
    rows, labels = of_task(world, "object_tracking")
    for row in rows:
        (name,) = row["photos"]
        original = photo(world, name)
        frames = pixels_of(world, row)
        image = row["targets"][0]["image"]
        asked = [
            int(each)
            for each in re.search(r"\((\d+),(\d+)\),\((\d+),(\d+)\)", row["question"]).groups()
        ]
        places = []
        for number, box in ((1, asked), (image, row["targets"][0]["box"])):
            frame = frames[number - 1]
            ((x, y),) = locate(frame, original)
            height, width = frame.shape[:2]
            sides = (width, height, width, height)
            places.append(
                [b * s / 1000 + o for b, s, o in zip(box, sides, (x, y, x, y), strict=True)]
            )
        found = [each for each in labels[name.rpartition("/")[2]] if near(each[2], places[0])]
        assert len(found) == 1
        assert near(found[0][2], places[1])


def test_views_show_the_marked_object_at_the_answer(world):
    rows, labels = of_task(world, "multi_view")
    for row in rows:
        original = photo(world, row["photos"][0])
        shown = pixels_of(world, row)
        image = row["targets"][0]["image"]
        assert image > 1
        asked = [
            int(each)
            for each in re.search(r"\((\d+),(\d+)\),\((\d+),(\d+)\)", row["question"]).groups()
        ]
        height, width = shown[0].shape[:2]
        first = [b * s / 1000 for b, s in zip(asked, (width, height, width, height), strict=True)]
        # Red just outside of the box, at the middle of each side that isn't cut.
        x, y = round((first[0] + first[2]) / 2), max(int(np.floor(first[1])) - 1, 0)
        rim = shown[0][max(y - 1, 0) : y + 2, x]
        assert (np.abs(rim.astype(int) - (255, 0, 0)).sum(axis=-1) == 0).any()
        # The object's texture, which nothing else has, is what the two boxes show.
        one = crop_of(shown[0], first)
        other = crop_of(shown[image - 1], in_pixels(row, shown[image - 1].shape[1::-1]))
        if is_plain(one) and is_plain(other):  # told by its colour, in another light
            assert np.abs(one.mean(axis=(0, 1)) - other.mean(axis=(0, 1))).max() < 50
            continue
        rivals = [
            crop_of(original, box) for _, _, box in labels[row["photos"][0].rpartition("/")[2]]
        ]
        scores = [alike(one, each) for each in rivals]
        assert np.argmax(scores) == np.argmax([alike(other, each) for each in rivals])
        assert alike(one, other) > 0.7


def crop_of(pixels, box):
    x1, y1, x2, y2 = (int(round(each)) for each in box)
    cut = Image.fromarray(pixels[max(y1, 0) : y2, max(x1, 0) : x2])
    return np.asarray(cut.resize((16, 16), Image.Resampling.BOX)).astype(float)


def is_plain(pixels):
    """Whether a small picture has one colour within, whatever is at its rim."""
    return pixels[3:-3, 3:-3].std(axis=(0, 1)).max() < 30


def alike(one, other):
    """The correlation of two small pictures, or of one and the other's mirror image."""

    def correlation(a, b):
        return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])

    return max(correlation(one, other), correlation(one, other[:, ::-1]))


def test_common_objects_are_the_only_ones(world):
    rows, labels = of_task(world, "common_object")
    for row in rows:
        names = named(row)
        assert len(set(names)) == len(names) >= 3
        (shared,) = set.intersection(*({each[0] for each in labels[name]} for name in names))
        asked = names[row["targets"][0]["image"] - 1]
        (answer,) = answers(world, row, asked)
        assert answer[0] == shared == row["targets"][0]["label"]
        assert [each[0] for each in labels[asked]].count(shared) == 1


def test_names_fit_one_object_of_the_group(world):
    rows, labels = of_task(world, "group_grounding")
    with_colour = 0
    for row in rows:
        name = re.search(r"<\|object_ref_start\|>(.*)<\|object_ref_end\|>", row["question"])[1]
        *colour, noun = name.split()
        with_colour += bool(colour)
        fitting = [
            (number, each[2])
            for number, file in enumerate(named(row), start=1)
            for each in labels[file]
            if each[0] == noun and colour in ([], [each[1]])
        ]
        assert len(fitting) == 1
        assert fitting[0][0] == row["targets"][0]["image"]
        assert len(answers(world, row, named(row)[fitting[0][0] - 1])) == 1
    assert with_colour


def test_referred_objects_are_the_only_ones(world):
    rows, labels = of_task(world, "refer_grounding")
    kinds = collections.Counter()
    for row in rows:
        image = row["targets"][0]["image"]
        label = row["targets"][0]["label"]
        assert image > 1
        shown = pixels_of(world, row)
        others = [photo(world, name) for name in row["photos"]]
        if "kind" in row["question"]:
            kinds["kind"] += 1
            name = row["photos"][1].rpartition("/")[2]
            assert [each[0] for each in labels[name]].count(label) == 1
            assert [each[0] for each in answers(world, row, name)] == [label]
            assert np.array_equal(shown[1], others[1])
            continue
        kinds["same"] += 1
        assert all(np.array_equal(a, b) for a, b in zip(shown[1:], others, strict=True))
        names = [each.rpartition("/")[2] for each in row["photos"]]
        (answer,) = answers(world, row, names[image - 2])
        assert answer[0] == label
        for number, name in enumerate(names, start=2):
            if number != image:
                assert label not in {each[0] for each in labels[name]}
        # The close view is of this object, and of none beside it.
        close = crop_of(shown[0], (0, 0, *shown[0].shape[1::-1]))
        scores = [alike(close, crop_of(others[image - 2], b)) for *_, b in labels[names[image - 2]]]
        best = labels[names[image - 2]][int(np.argmax(scores))]
        assert best[2] == answer[2]
    assert min(kinds["kind"], kinds["same"]) >= 2


def test_corresponding_objects_are_the_only_ones(world):
    rows, labels = of_task(world, "correspondence")
    for row in rows:
        label = row["targets"][0]["label"]
        name = row["photos"][1].rpartition("/")[2]
        kind = small_world.CLASSES.get(label, label)
        kinds = [small_world.CLASSES.get(each[0], each[0]) for each in labels[name]]
        assert kinds.count(kind) == 1
        assert [each[0] for each in answers(world, row, name)] == [label]
        # What is marked in the first image is of the class.
        marked, plain = pixels_of(world, row)[0], photo(world, row["photos"][0])
        ys, xs = np.nonzero((marked != plain).any(axis=-1))
        box = xs.min() + 1, ys.min() + 1, xs.max(), ys.max()
        found = [e for e in labels[row["photos"][0].rpartition("/")[2]] if near(e[2], box, 2)]
        assert [each[0] for each in found] == [label]


def test_look_ups_have_one_answer(world):
    rows, labels = of_task(world, "reasoning")
    kinds = collections.Counter()
    for row in rows:
        target, question = row["targets"][0], row["question"]
        if "colour" in question:
            kinds["colour"] += 1
            name = row["photos"][1].rpartition("/")[2]
            colour, label = target["label"].split()
            found = [each for each in labels[name] if each[1] == colour]
            assert [each[0] for each in found] == [label]
            assert answers(world, row, name) == found
        elif most := re.search(r"(leftmost|rightmost|topmost|lowest|largest)", question):
            kinds["order"] += 1
            name = row["photos"][1].rpartition("/")[2]
            of_kind = [box for label, _, box in labels[name] if label == target["label"]]
            assert len(of_kind) >= 2
            x, y = (lambda b: b[0] + b[2]), (lambda b: b[1] + b[3])
            area = lambda b: (b[2] - b[0]) * (b[3] - b[1])  # noqa: E731
            best = {
                "leftmost": min(of_kind, key=x),
                "rightmost": max(of_kind, key=x),
                "topmost": min(of_kind, key=y),
                "lowest": max(of_kind, key=y),
                "largest": max(of_kind, key=area),
            }[most[1]]
            assert [each[2] for each in answers(world, row, name)] == [best]
        else:
            kinds["company"] += 1
            label = target["label"]
            classes = "|".join({each[0] for things in labels.values() for each in things})
            words = [each for each in re.findall(rf"\b({classes})\b", question) if each != label]
            (other,) = set(words)
            shown = [{each[0] for each in labels[name]} for name in named(row)]
            both = [n for n, each in enumerate(shown, start=1) if {label, other} <= each]
            assert both == [target["image"]]
            assert sum(label in each for each in shown) >= 2
            found = answers(world, row, named(row)[both[0] - 1])
            assert [each[0] for each in found] == [label]
    assert len(kinds) == 3
