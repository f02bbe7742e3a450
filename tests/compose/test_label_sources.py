"""Labels of each kind of file, with their bad members: read, left out with a reason, or refused."""

import errno
import functools
import json
import os

import label_files
import pytest
from label_files import boxes, picture

from mirg_jax.compose.json_stream import elements
from mirg_jax.compose.sources import parse_source, read_source
from mirg_jax.data.examples import Example, Target, write_mgrounding, write_trajectories
from mirg_jax.data.images import ImageRoot
from mirg_jax.data.left_out import LeftOut
from mirg_jax.errors import ConfigError, DataError
from mirg_jax.grounding.grammar import format_response


@pytest.fixture
def read(tmp_path):
    return functools.partial(label_files.read, tmp_path)


# COCO ---------------------------------------------------------------------------------------------

COCO = {
    "annotations": [
        {"image_id": 2, "category_id": 7, "bbox": [1, 2, 10, 5], "attributes": {"color": "Red"}},
        {"image_id": 1, "category_id": 7, "bbox": [0, 0, 8, 8.5], "iscrowd": 0},
        {"image_id": 1, "category_id": 3, "bbox": [0, 0, 40, 20], "iscrowd": 1},
    ],
    "info": {"year": 2017},
    "images": [
        {"id": 1, "file_name": "a.jpg", "width": 40, "height": 20},
        {"id": 2, "file_name": "b.jpg"},
    ],
    "categories": [
        {"id": 7, "name": "Street_Light", "supercategory": "outdoor"},
        {"id": 3, "name": "person"},
    ],
}


def test_coco_is_read_in_any_order(read, tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps(COCO, indent=1))
    photos, left_out = read("coco=ROOT/labels.json@photos/2017")
    assert not left_out
    first, second = photos["photos/2017/a.jpg"], photos["photos/2017/b.jpg"]
    assert boxes(first) == {("street light", (0, 0, 8, 8.5))}
    assert first.size == (40, 20) and first.complete and first.unsure == {"person"}
    assert boxes(second) == {("red street light", (1, 2, 11, 7))}
    assert second.objects[0].kind == "outdoor" and second.size is None


@pytest.mark.parametrize(
    ("array", "row", "reason"),
    [
        ("annotations", {"image_id": 1, "category_id": 7, "bbox": [1, 2, 0, 5]}, "is empty"),
        ("annotations", {"image_id": 1, "category_id": 7, "bbox": [1, 2, 5]}, "four numbers"),
        ("annotations", {"image_id": 1, "category_id": 7}, "four numbers"),
        ("annotations", {"image_id": 1, "category_id": 9, "bbox": [1, 2, 3, 4]}, "category"),
        ("annotations", {"image_id": 5, "category_id": 7, "bbox": [1, 2, 3, 4]}, "5 is none of"),
        ("annotations", {"category_id": 7, "bbox": [1, 2, 3, 4]}, "'image_id' is None"),
        ("annotations", {"image_id": 1, "category_id": [7], "bbox": [1, 2, 3, 4]}, "category"),
        ("annotations", "text", "where an object is needed"),
        ("images", {"id": 1, "file_name": "c.jpg"}, "another image has the id 1"),
        ("images", {"id": 9}, "'file_name' is missing"),
        ("images", {"id": 9, "file_name": "c.jpg", "neg_category_ids": 5}, "a list of integers"),
        ("images", {"id": 9, "file_name": "c.jpg", "not_exhaustive_category_ids": [[7]]}, "a list"),
        ("categories", {"id": 4}, "not text"),
        ("categories", {"id": 7, "name": "horse"}, "another category has the id 7"),
    ],
)  # fmt: skip
def test_bad_rows_of_coco_are_left_out_and_named(read, tmp_path, array, row, reason):
    labels = COCO | {array: [*COCO[array], row]}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    photos, left_out = read("coco=ROOT/labels.json")
    assert {"a.jpg", "b.jpg"} <= set(photos)
    (found,) = left_out
    assert found["count"] == 1 and reason in found["first"]
    assert f"labels.json {array} {len(COCO[array])}: " in found["first"]
    if row and "bbox" in row and row.get("image_id") == 1 and row["category_id"] == 7:
        assert "street light" in photos["a.jpg"].unsure  # there is one more, somewhere


def test_federated_labels_know_only_what_was_looked_for(read, tmp_path):
    labels = json.loads(json.dumps(COCO))
    labels["images"][0] |= {"neg_category_ids": [3], "not_exhaustive_category_ids": []}
    labels["annotations"].pop()
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    photos, _ = read("coco=ROOT/labels.json")
    assert not photos["a.jpg"].complete
    assert photos["a.jpg"].looked_for == {"person", "street light"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"images": [{"id": 1, "file_na', "not usable JSON"),
        ("[1, 2]", "an object with images, annotations, categories is needed"),
        ('{"images": {}}', "'images' is not a list"),
        ('{"images": [], "categories": []}', "has no images"),
        ('{"images": [{"id": 1, "file_name": "a"}]}', "has no categories"),
        ('{"images": [{"id": "1", "file_name": "a"}]}', "has no images .*; images 0: 'id' is '1'"),
        ("\x89PNG\r\n", "PNG image"),
        ("", "an object with"),
        (json.dumps(COCO) + "{}", "something follows behind the end"),
    ],
)
def test_other_files_than_coco_are_refused(read, tmp_path, content, reason):
    (tmp_path / "labels.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=reason) as refused:
        read("coco=ROOT/labels.json")
    assert "labels.json" in str(refused.value) and "\n" not in str(refused.value)


def test_long_files_are_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("mirg_jax.compose.json_stream._CHUNK", 7)
    rows = [{"n": n, "text": 'é "\\ü' * n, "f": -1.5e-3, "b": [True, None]} for n in range(40)]
    path = tmp_path / "rows.json"
    for text in (json.dumps(rows), "\n".join(map(json.dumps, rows)), json.dumps(rows, indent=3)):
        path.write_text(text, "utf-8")
        assert [each.value for each in elements(path)] == rows
    path.write_text(json.dumps({"skipped": rows, "mine": rows, "more": 12345678}))
    assert [each.value for each in elements(path, ("mine",))] == rows
    path.write_text(json.dumps(rows)[:-5])
    with pytest.raises(DataError, match="from line 1 on"):
        list(elements(path))


# YOLO ---------------------------------------------------------------------------------------------


def test_yolo_is_read(read, tmp_path):
    folder = tmp_path / "yolo"
    for name in ("images/train/a.png", "images/train/b.png", "images/val/c.png"):
        picture(folder / name)
    (folder / "data.yaml").write_text("names: {0: person, 1: traffic light}\n")
    (folder / "labels/train").mkdir(parents=True)
    (folder / "labels/train/a.txt").write_text(
        "1 0.5 0.5 0.5 0.5\n0 0.1 0.1 0.3 0.1 0.3 0.6 0.1 0.6\n"
    )
    for text in ("yolo=ROOT/yolo", "yolo=ROOT/yolo/data.yaml"):
        photos, left_out = read(text)
        assert not left_out
        assert sorted(photos) == [
            f"yolo/images/{name}.png" for name in ("train/a", "train/b", "val/c")
        ]
        first = photos["yolo/images/train/a.png"]
        assert boxes(first) == {("traffic light", (10, 5, 30, 15)), ("person", (4, 2, 12, 12))}
        assert first.complete and first.size == (40, 20)
        assert photos["yolo/images/val/c.png"].objects == ()  # a background


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("5 0.5 0.5 0.5 0.5", "class '5' is none of the 1 names"),
        ("0 0.5 0.5", "2 numbers behind the class"),
        ("0 20 10 10 5", "not in fractions"),
        ("0 0.5 0.5 0 0.5", "empty"),
        ("dog 0.5 0.5 0.1 0.1", "class 'dog'"),
        ("9" * 5000 + " 0.5 0.5 0.1 0.1", "is none of the 1 names; correct it"),
        ("² 0.5 0.5 0.1 0.1", "class '²'"),
        ("0 a b c d", "could not convert"),
        ("0 nan nan 0.1 0.1", "empty"),
    ],
)
def test_bad_lines_of_yolo_are_left_out_and_named(read, tmp_path, line, reason):
    picture(tmp_path / "a.png")
    (tmp_path / "classes.txt").write_text("dog\n")
    (tmp_path / "a.txt").write_text(f"0 0.5 0.5 0.2 0.2\n{line}\n")
    photos, (found,) = read("yolo=ROOT")
    assert len(photos["a.png"].objects) == 1
    assert "a.txt line 2: " in found["first"] and reason in found["first"]
    assert "dog" in photos["a.png"].unsure


def test_folders_without_names_or_labels_are_refused(read, tmp_path):
    picture(tmp_path / "images/a.png")
    with pytest.raises(DataError, match="has no data.yaml or"):
        read("yolo=ROOT")
    (tmp_path / "data.yaml").write_text("names: [dog]")
    with pytest.raises(DataError, match="no image has a file of labels"):
        read("yolo=ROOT")
    (tmp_path / "data.yaml").write_text("names: {0: [")
    with pytest.raises(DataError, match="data.yaml: the names of classes can't be read"):
        read("yolo=ROOT")


@pytest.mark.parametrize("names", ["{0: dog, 5: cat}", "{'0': dog}", "{0: dog, a: cat}"])
def test_names_with_gaps_in_their_numbers_are_refused(read, tmp_path, names):
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 0.2")
    (tmp_path / "data.yaml").write_text(f"names: {names}")
    with pytest.raises(DataError, match=r"data.yaml: .*\(their numbers aren't 0 to [01]\)"):
        read("yolo=ROOT")


def test_marks_of_the_byte_order_are_passed_over(read, tmp_path):
    """Editors on Windows begin text with one."""
    mark = "\ufeff"
    for name in ("yolo/a.png", "dog-1/1.png", "s/img1/000001.jpg"):
        picture(tmp_path / name)
    (tmp_path / "yolo/classes.txt").write_text(f"{mark}dog\n", "utf-8")
    (tmp_path / "yolo/a.txt").write_text(f"{mark}0 0.5 0.5 0.2 0.2\n", "utf-8")
    (tmp_path / "dog-1/groundtruth.txt").write_text(f"{mark}1,1,20,10\n", "utf-8")
    (tmp_path / "s/gt").mkdir()
    (tmp_path / "s/gt/gt.txt").write_text(f"{mark}1,1,5,5,20,10,1,1,1\n", "utf-8")
    for text, label in (("yolo=ROOT/yolo", "dog"), ("lasot=ROOT/dog-1", "dog"),
                        ("mot=ROOT/s", "pedestrian")):  # fmt: skip
        photos, left_out = read(text)
        ((thing,),) = (photo.objects for photo in photos.values())
        assert thing.label == label and not left_out


@pytest.mark.parametrize("kind", ["yolo", "mot", "lasot"])
def test_folders_that_cannot_be_read_are_told(read, tmp_path, monkeypatch, kind):
    for name in ("images/a.png", "images/secret/b.png", "s/img1/000001.jpg"):
        picture(tmp_path / name)
    (tmp_path / "classes.txt").write_text("dog")
    for name, text in (("labels/a.txt", "0 0.5 0.5 0.2 0.2"), ("s/gt/gt.txt", "1,1,5,5,20,10"),
                       ("s/groundtruth.txt", "")):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("secret"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    _, left_out = read(f"{kind}=ROOT")
    found = [each for each in left_out if each["reason"] == "a folder can't be read"]
    assert "images/secret: cannot be read (Permission denied); change" in found[0]["first"]


def test_labels_that_cannot_be_read_end_the_run(read, tmp_path, monkeypatch):
    (tmp_path / "s/gt").mkdir(parents=True)
    (tmp_path / "s/gt/gt.txt").touch()

    def refuse(self, name, *more):
        raise PermissionError(errno.EACCES, "Permission denied", name)

    monkeypatch.setattr("configparser.ConfigParser.read", refuse)
    with pytest.raises(DataError, match="seqinfo.ini: cannot be read .Permission denied.; check"):
        read("mot=ROOT")


# Expressions --------------------------------------------------------------------------------------

REFS = [
    {"file_name": "a.jpg", "bbox": [1, 2, 10, 5], "sentences": ["The man on the left.", "man"],
     "category": "person", "width": 40, "height": 20},
    {"image": "b.jpg", "box": [1, 2, 11, 7], "expression": "red cup"},
    {"img_name": "c.jpg", "bbox": [1, 2, 3, 4], "sentences": [{"sent": "a dog"}, {"raw": "dog"}]},
]  # fmt: skip


@pytest.mark.parametrize("lines", [False, True])
def test_expressions_are_read(read, tmp_path, lines):
    text = "\n".join(map(json.dumps, REFS)) if lines else json.dumps(REFS)
    (tmp_path / "refs.json").write_text(text)
    photos, left_out = read("refs=ROOT/refs.json@train2014")
    assert not left_out
    (first,) = photos["train2014/a.jpg"].objects
    assert first.label == "person" and first.box == (1, 2, 11, 7)
    assert first.phrases == ("man", "the man on the left")
    assert photos["train2014/b.jpg"].objects[0].phrases == ("red cup",)
    assert photos["train2014/c.jpg"].objects[0].phrases == ("a dog", "dog")
    assert not any(photo.complete for photo in photos.values())


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"bbox": [1, 2, 3, 4], "expression": "cup"}, "give its path in 'file_name'"),
        ({"image": 5, "bbox": [1, 2, 3, 4], "expression": "cup"}, "not a path"),
        ({"image": "a.jpg", "expression": "cup"}, "'bbox' or 'box'"),
        ({"image": "a.jpg", "box": [0.1, 0.2, 0.3, 0.4], "expression": "cup"}, "in pixels"),
        ({"image": "a.jpg", "bbox": [1, 2, 3, 4]}, "neither a description"),
        ({"image": "https://x/a.jpg", "bbox": [1, 2, 3, 4], "sent": "cup"}, "web address"),
        (3, "where an object is needed"),
    ],
)
def test_bad_expressions_are_left_out_and_named(read, tmp_path, row, reason):
    (tmp_path / "refs.json").write_text(json.dumps([*REFS, row]))
    photos, (found,) = read("refs=ROOT/refs.json")
    assert len(photos) == 3
    assert "refs.json row 3: " in found["first"] and reason in found["first"]
    (tmp_path / "refs.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match="no row can be used; the first: "):
        read("refs=ROOT/refs.json")
    (tmp_path / "refs.json").write_text("[]")
    with pytest.raises(DataError, match="no row can be used; it has none, get or make it again"):
        read("refs=ROOT/refs.json")


@pytest.mark.parametrize("box", ["[1, 1, 9, 1e400]", f"[1, 1, 9, 1{'0' * 400}]", "[1, 1, 9, NaN]"])
def test_boxes_without_end_are_left_out(read, tmp_path, box):
    row = '{"image": "a.jpg", "caption": "a dog", "KEY": BOX}'
    for key in ("bbox", "box"):
        text = row.replace("KEY", key).replace("BOX", box)
        (tmp_path / "refs.json").write_text(f"[{json.dumps(REFS[0])}, {text}]")
        _, (found,) = read("refs=ROOT/refs.json")
        assert found["count"] == 1 and "refs.json row 1: " in found["first"]


def test_expressions_end_at_a_line_that_is_not_json(read, tmp_path):
    lines = (json.dumps(REFS[0]), '{"image": "a.jpg", "bbox": [1, 1', json.dumps(REFS[0]))
    (tmp_path / "refs.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match="refs.jsonl: not usable JSON from line [23] on .*again$"):
        read("refs=ROOT/refs.jsonl")


# Own rows -----------------------------------------------------------------------------------------


def test_own_rows_are_read(read, tmp_path):
    for name in "abcd":
        picture(tmp_path / f"{name}.png", (100, 50))
    seen = (
        "<bbox_id>[1-1]</bbox_id><|object_ref_start|>red circle<|object_ref_end|>"
        "<|box_start|>(0,0),(100,200)<|box_end|> and <bbox_id>[2-1]</bbox_id>"
        "<|object_ref_start|>a cup<|object_ref_end|><|box_start|>(500,0),(600,200)<|box_end|>"
    )
    answer = "<bbox_id>[2-1]</bbox_id><|box_start|>(500,0),(600,200)<|box_end|>"
    target = (Target((500, 0, 600, 200), 2, "cup"),)
    examples = [
        Example("g", "group_grounding", ("a.png", "b.png"), "Where is it?", target,
                format_response(seen, answer)),
        Example("d", "diff", ("c.png", "d.png"), "What changed?", (Target((0, 0, 9, 9)),)),
        Example("r", "region", ("c.png", "d.png"), "Locate it in the source image.",
                (Target((0, 0, 500, 500), 1),)),
    ]  # fmt: skip
    write_trajectories(tmp_path / "rows.jsonl", examples)
    photos, (found,) = read("rows=ROOT/rows.jsonl", ["rows"])
    assert "rows.jsonl row 1: of a diff row" in found["first"]
    assert sorted(photos) == ["a.png", "b.png", "c.png"]
    assert boxes(photos["a.png"]) == {("red circle", (0, 0, 10, 10))}
    assert photos["a.png"].objects[0].label == "circle"
    assert boxes(photos["b.png"]) == {("cup", (50, 0, 60, 10))}
    assert boxes(photos["c.png"]) == {("", (0, 0, 50, 25))}
    assert all(photo.complete for photo in photos.values())


def test_names_in_questions_are_labels_and_sentences_are_descriptions(read, tmp_path):
    for name in "ab":
        picture(tmp_path / f"{name}.png", (100, 50))
    marked = "Find <|object_ref_start|>{}<|object_ref_end|>."
    examples = [
        Example(f"group_grounding_{n}", "group_grounding", ("a.png", "b.png"), marked.format(words),
                (Target((0, 0, 500, 500), n),))
        for n, words in enumerate(("the skateboard", "a white dog with a blue collar"), start=1)
    ]  # fmt: skip
    write_mgrounding(tmp_path / "rows.json", examples)
    left_out = LeftOut()
    source = parse_source(f"rows={tmp_path}/rows.json")
    found = [
        each
        for photo in read_source(source, ImageRoot(tmp_path), left_out)
        for each in photo.objects
    ]
    assert [(each.label, each.phrases) for each in found] == [
        ("skateboard", ()),
        ("", ("a white dog with a blue collar",)),
    ]


# What names a source ------------------------------------------------------------------------------


def test_sources_are_named_by_kind_and_path(tmp_path):
    with pytest.raises(ConfigError, match="give KIND=LABELS"):
        parse_source("coco")
    with pytest.raises(ConfigError, match="KIND one of coco, yolo"):
        parse_source("voc=x")
    with pytest.raises(ConfigError, match="there is no 'nowhere'; check the path"):
        parse_source("coco=nowhere@images")
    (tmp_path / "a@b").mkdir()
    assert parse_source(f"yolo={tmp_path}/a@b").folder == ""


def test_images_outside_of_the_root_are_left_out(read, tmp_path):
    rows = [*REFS, {"image": "../../a.jpg", "bbox": [1, 2, 3, 4], "sent": "cup"},
            {"image": "/etc/a.jpg", "bbox": [1, 2, 3, 4], "sent": "cup"}]  # fmt: skip
    (tmp_path / "refs.json").write_text(json.dumps(rows))
    photos, (found,) = read("refs=ROOT/refs.json@photos")
    assert len(photos) == 3 and found["count"] == 2
    assert "'../../a.jpg' isn't below" in found["first"]
