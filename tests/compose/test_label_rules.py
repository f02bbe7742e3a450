"""On any labels, what is drawn has one answer: checked by counting, not by the composer's rules."""

import collections
import json
import pathlib
import re
import tempfile

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from mirg_jax.compose import compose, index, photo_tasks
from mirg_jax.compose.library import Library, NotPossible
from mirg_jax.compose.names import alike, clean, split_colour
from mirg_jax.compose.photos import Labelled, Photo, merged
from mirg_jax.compose.sources import Source
from mirg_jax.data.images import ImageRoot
from mirg_jax.data.left_out import LeftOut
from mirg_jax.errors import DataError

# By number: names of one group may be said of the same object.
GROUPS = (
    ("dog",),
    ("bear", "teddy bear"),
    ("couch", "sofa"),
    ("person", "man"),
    ("kite",),
    ("cup",),
)
NAMES = [name for group in GROUPS for name in group]
GROUP = {name: number for number, group in enumerate(GROUPS) for name in group}
KINDS = {0: "animal", 1: "animal", 2: "thing", 3: "person", 4: "thing", 5: "thing"}
SIDE, CELL = 300, 100

cells = st.dictionaries(st.integers(0, 8), st.sampled_from(NAMES), max_size=4)
crowds = st.sets(st.sampled_from(NAMES), max_size=1)
worlds = st.lists(st.tuples(cells, crowds), min_size=3, max_size=14)


def box_of(cell):
    x, y = CELL * (cell % 3) + 10, CELL * (cell // 3) + 10
    return [x, y, x + 60, y + 60 + cell]


def write_world(folder, world):
    categories = [
        {"id": n, "name": name, "supercategory": KINDS[GROUP[name]]} for n, name in enumerate(NAMES)
    ]
    images = [{"id": n, "file_name": f"{n}.png"} for n in range(len(world))]
    rows = []
    for number, (things, unsure) in enumerate(world):
        for cell, name in things.items():
            x1, y1, x2, y2 = box_of(cell)
            rows.append((number, name, [x1, y1, x2 - x1, y2 - y1], 0))
        rows += [(number, name, [0, 0, SIDE, SIDE], 1) for name in unsure]
    annotations = [
        {"image_id": n, "category_id": NAMES.index(name), "bbox": box, "iscrowd": crowd}
        for n, name, box, crowd in rows
    ]
    labels = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "labels.json").write_text(json.dumps(labels))


@pytest.fixture
def opened(monkeypatch):
    """Opens a world of labels as a library, without images."""
    monkeypatch.setattr(index, "look_at", lambda root, path: (path, SIDE, SIDE))

    def open_world(world):
        folder = pathlib.Path(tempfile.mkdtemp())
        write_world(folder, world)
        sources, root = (Source("coco", folder / "labels.json"),), ImageRoot(folder)
        index.build_index(
            folder / "index", sources, root, seed=0, eval_share=0.0, left_out=LeftOut()
        )
        library = Library(folder / "index", root, index.TRAIN, 10**6)
        rng = np.random.default_rng(0)
        noise = rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
        library.pixels = lambda photo: noise
        return library

    return open_world


def groups_of(world, photo):
    """How often a photo shows each group; None where a crowd makes that unknown."""
    things, unsure = world[int(photo.removesuffix(".png"))]
    counts = collections.Counter(GROUP[name] for name in things.values())
    return {g: None if g in {GROUP[u] for u in unsure} else counts[g] for g in range(len(GROUPS))}


def label_at(world, photo, box):
    """The name of the object whose box this is."""
    things, _ = world[int(photo.removesuffix(".png"))]
    grid = {
        tuple(round(v / SIDE * 1000) for v in box_of(cell)): name for cell, name in things.items()
    }
    return grid[tuple(box)]


def check(world, task, draft):
    # A close view of an object of a photo that is shown too is no photo of its own.
    target = draft.photos[draft.image - 1 - (len(draft.images) - len(draft.photos))]
    counts = [groups_of(world, each) for each in draft.photos]
    answer = label_at(world, target, draft.box)
    group = GROUP[answer]
    mine = groups_of(world, target)
    assert len(set(draft.photos)) == len(draft.photos)
    if task == "common_object":
        maybe = [g for g in range(len(GROUPS)) if all(each[g] != 0 for each in counts)]
        assert maybe == [group] and mine[group] == 1
    elif task == "group_grounding":
        (name,) = re.findall(r"ref_start\|>(.*?)<", draft.question)
        assert name == answer and sum(each[group] for each in counts) == 1
    elif task == "correspondence":
        assert mine[group] == 1 and answer == draft.label
        alike_kind = [n for g, n in mine.items() if KINDS[g] == KINDS[group]]
        assert sum(filter(None, alike_kind)) == 1
    elif task == "refer_grounding":
        others = [each for each, name in zip(counts, draft.photos, strict=True) if name != target]
        if "kind" in draft.question:
            assert mine[group] == 1
        else:
            assert all(each[group] == 0 for each in others)
    elif "several" in draft.question.lower() or "only image" in draft.question:
        if most := re.search(r"(leftmost|rightmost|topmost|lowest|largest)", draft.question):
            check_order(world, target, group, draft, most[1])
        else:
            check_company(world, draft, counts, group, mine)
    else:
        most = re.search(r"(leftmost|rightmost|topmost|lowest|largest)", draft.question)
        check_order(world, target, group, draft, most[1])


def check_order(world, target, group, draft, word):
    things, unsure = world[int(target.removesuffix(".png"))]
    assert group not in {GROUP[each] for each in unsure}
    boxes = [box_of(cell) for cell, name in things.items() if GROUP[name] == group]
    measure = {
        "leftmost": lambda b: -b[0] - b[2],
        "rightmost": lambda b: b[0] + b[2],
        "topmost": lambda b: -b[1] - b[3],
        "lowest": lambda b: b[1] + b[3],
        "largest": lambda b: (b[2] - b[0]) * (b[3] - b[1]),
    }[word]
    assert len(boxes) >= 2
    best = max(boxes, key=measure)
    assert draft.box == tuple(round(v / SIDE * 1000) for v in best)
    assert sum(measure(box) == measure(best) for box in boxes) == 1


def check_company(world, draft, counts, group, mine):
    words = [name for name in NAMES if re.search(rf"\b{name}\b", draft.question)]
    others = {GROUP[name] for name in words} - {group}
    (other,) = others
    assert mine[group] == 1 and mine[other]
    with_both = [each for each in counts if each[group] != 0 and each[other] != 0]
    assert len(with_both) == 1 and all(each[group] == 1 for each in counts)


TASKS = ("common_object", "group_grounding", "correspondence", "refer_grounding", "reasoning")


def check_drafts(library, world, rng, draws):
    """Draws examples of every task, checks those that are possible, and counts them."""
    made = collections.Counter()
    for task in TASKS:
        for _ in range(draws):
            try:
                draft = getattr(photo_tasks, task)(rng, library)
            except NotPossible:
                continue
            check(world, task, draft)
            made[task] += 1
    return made


@given(worlds, st.integers(0, 2**32))
@hypothesis_settings(
    deadline=None,
    max_examples=12,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_one_object_answers_on_any_labels(opened, world, seed):
    check_drafts(opened(world), world, np.random.default_rng(seed), 6)


def test_examples_come_of_rich_labels(opened):
    """So that the test above isn't one of nothing."""
    rng = np.random.default_rng(5)
    world = []
    for _ in range(40):
        places = rng.choice(9, rng.integers(1, 5), replace=False)
        world.append(({int(p): NAMES[int(rng.integers(len(NAMES)))] for p in places}, set()))
    made = check_drafts(opened(world), world, rng, 60)
    assert all(made[task] >= 15 for task in TASKS), made


# Names --------------------------------------------------------------------------------------------


def test_names_of_the_same_things():
    assert alike("dog", "dogs") and alike("dining table", "table") and alike("couch", "sofa")
    assert alike("person", "woman") and alike("car", "trucks") and alike("tv", "laptop")
    assert not alike("dog", "cat") and not alike("pineapple", "apple") and not alike("bus", "glass")
    assert split_colour("a red circle") == ("circle", (("colour", "red"),))
    assert split_colour("the orange") == ("orange", ())
    assert clean(" Street_Light ") == "street light"
    for bad in ("", 3, None, "a <|box_start|>", "x" * 300):
        with pytest.raises(ValueError):
            clean(bad)


# What sources say of the same photo ---------------------------------------------------------------


def test_sources_of_one_photo_are_joined():
    one = Photo("b.jpg", (Labelled("dog", (0, 0, 10, 10), "animal"),), complete=True)
    other = Photo(
        "a.jpg",
        (
            Labelled("", (0, 0, 10, 9.5), phrases=("the small dog",)),
            Labelled("cat", (0, 0, 10, 10)),
        ),
        unsure=frozenset(("man",)),
    )
    for photos in ((one, other), (other, one)):
        found = merged(photos)
        assert found.path == "a.jpg" and found.complete and found.unsure == {"man"}
        by_label = {each.label: each for each in found.objects}
        assert set(by_label) == {"dog", "cat"}
        assert {p for each in found.objects for p in each.phrases} == {"the small dog"}


def test_files_are_checked_and_split_by_content(tmp_path):
    for number in range(40):
        Image.new("RGB", (SIDE, SIDE), (number, 0, 0)).save(tmp_path / f"{number}.png")
    world = [({0: "dog"}, set()) for _ in range(46)]
    (tmp_path / "40.png").write_bytes((tmp_path / "7.png").read_bytes())  # the same photo
    (tmp_path / "41.png").write_bytes(b"no image")
    Image.new("RGB", (50, 50)).save(tmp_path / "42.png")  # its box lies outside
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (SIDE, SIDE), "white").save(tmp_path / "43.png", exif=exif)
    Image.new("RGB", (SIDE, SIDE), "grey").save(tmp_path / "44.png")  # 45 is missing
    write_world(tmp_path, world)
    labels = json.loads((tmp_path / "labels.json").read_text())
    labels["images"][44] |= {"width": 99, "height": 20}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    left_out = LeftOut()
    sources = (Source("coco", tmp_path / "labels.json"),)
    index.build_index(
        tmp_path / "index", sources, ImageRoot(tmp_path), seed=1, eval_share=0.25, left_out=left_out
    )
    told = {
        each["first"].split("/")[-1].split("'")[0]: each["first"] for each in left_out.to_json()
    }
    counts = {each["reason"]: each["count"] for each in left_out.to_json()}
    assert counts["an image can't be used"] == 3
    assert "41.png" in told and "no image of a known format" in told["41.png"]
    assert counts["a box lies outside its image"] == 1
    assert counts["an image hasn't the size that its labels say"] == 1
    facts = index.facts_of(tmp_path / "index")
    assert sum(facts["photos"].values()) == 41  # 7 and 40 are one; 42 has no object
    assert 3 <= facts["photos"]["eval"] <= 20


def test_a_source_without_a_usable_photo_is_refused(tmp_path):
    write_world(tmp_path, [({0: "dog"}, set())])
    made = compose.Settings(
        (Source("coco", tmp_path / "labels.json"),),
        ImageRoot(tmp_path),
        {"sft": 1, "rl": 0, "eval": 0},
    )
    with pytest.raises(DataError, match="no photo can be used; .*0.png.*No such file") as refused:
        compose.compose(made, tmp_path / "out")
    assert "\n" not in str(refused.value)
