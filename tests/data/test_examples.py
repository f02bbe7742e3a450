"""Rows of the three formats, of real files and bad ones."""

import collections
import functools
import json

import pytest
from data_rows import BOX, MGROUNDING, MIG_BENCH, TRAJECTORY, read_content, said

from mirg_jax.data.examples import Target, read_examples
from mirg_jax.grounding.tasks import MIG_BENCH_TASKS


@pytest.fixture
def read(tmp_path):
    return functools.partial(read_content, tmp_path)


# Real files ---------------------------------------------------------------------------------------


def count_images(examples):
    """Targets by task, and how many of them name an image."""
    known, total = collections.Counter(), collections.Counter()
    for example in examples:
        for target in example.targets:
            assert target.image is None or 1 <= target.image <= len(example.images)
            known[example.task] += target.image is not None
            total[example.task] += 1
    return known, total


def test_mgrounding_rows_of_real_photos(shared):
    path = shared("real_photos", "train.json")
    rows = json.loads(path.read_text())
    examples, rejected = read_examples(path)
    assert rejected == []
    assert len(examples) == sum(len(row["conversations"]) // 2 for row in rows) == 1164

    by_source = collections.defaultdict(list)
    for example in examples:
        by_source[example.source].append(example)
    for index, row in enumerate(rows):
        turns = by_source[f"train.json row {index}"]
        assert [turn.id for turn in turns] == [row["id"], f"{row['id']}#2"][: len(turns)]
        for turn, (human, gpt) in zip(
            turns, zip(*[iter(row["conversations"])] * 2, strict=True), strict=True
        ):
            assert turn.question == human["value"]
            assert turn.images == tuple(row["images"])
            assert turn.response is None
            x1, y1, x2, y2 = turn.targets[0].box
            assert f"({x1},{y1}),({x2},{y2})" in gpt["value"]
            assert len(turn.targets) == gpt["value"].count("<|box_start|>")

    known, total = count_images(examples)
    assert total == known + collections.Counter(diff=110)


def test_mig_bench_rows_of_real_photos(shared):
    path = shared("real_photos", "eval.json")
    rows = json.loads(path.read_text())
    examples, rejected = read_examples(path)
    assert rejected == []
    assert len(examples) == len(rows) == 301
    for example, row in zip(examples, rows, strict=True):
        assert example.task == row["task"]
        assert [value / 1000 for value in example.targets[0].box] == row["answer"]
    known, total = count_images(examples)
    assert total == known + collections.Counter(diff=32)


def test_mig_bench(shared):
    path = shared("mig_bench", "MIG_data.json")
    rows = json.loads(path.read_text())
    examples, rejected = read_examples(path)
    assert len(examples) + len(rejected) == len(rows) == 4295

    reasons = {int(row.source.rpartition(" ")[2]): row.reason for row in rejected}
    inverted = [index for index, reason in reasons.items() if "inverted" in reason]
    outside = [index for index, reason in reasons.items() if "not inside 0..1" in reason]
    assert inverted == [7, 105, 126, 163, 512]
    assert outside == [34, 703]
    assert len(reasons) == 7

    kept = iter(examples)
    for index, row in enumerate(rows):
        if index not in reasons:
            example = next(kept)
            assert example.source == f"MIG_data.json row {index}"
            assert [value / 1000 for value in example.targets[0].box] == row["answer"]
    known, total = count_images(examples)
    assert set(total) == set(MIG_BENCH_TASKS)
    assert total == known + collections.Counter(diff=528)
    group = [example for example in examples if example.task == "group_grounding"]
    assert collections.Counter(e.targets[0].image for e in group) == {
        1: 127, 2: 128, 3: 127, 4: 77, 5: 40
    }  # fmt: skip


# Rows that can't be used --------------------------------------------------------------------------


def box_of(*values):
    return [{"image": 1, "box": list(values), "label": ""}]


NAN, INFINITY = float("nan"), float("inf")
BAD_ROWS = [
    *(
        (row, change, reason)
        for row in (TRAJECTORY, MIG_BENCH, MGROUNDING)
        for change, reason in [
            ({"images": []}, "'images' is empty"),
            ({"images": None}, "'images' is missing"),
            ({"images": "1.jpg"}, "'images' is text"),
            ({"images": ["1.jpg", 2]}, "not a path"),
            ({"images": ["1.jpg", ""]}, "not a path"),
        ]
    ),
    *(
        (row, change, reason)
        for row in (TRAJECTORY, MIG_BENCH)
        for change, reason in [
            ({"question": 5}, "'question' is a number"),
            ({"question": "<image>" * 3}, "3 <image> marks for 2 images"),
            ({"question": "<image> "}, "the question is empty"),
            ({"question": "\ud800"}, "surrogate"),
            ({"task": ["diff"]}, "'task' is a list"),
            ({"id": {}}, "'id' is an object"),
            ({"images": [{"bytes": "/9j/4AAQ", "path": "1.jpg"}, "2.jpg"]}, "given in 'bytes'"),
            ({"images": [{"image": {"base64": "/9j/4"}}]}, "given in 'base64'"),
            ({"images": [{"bytes": None, "path": None}]}, "not a path"),
            ({"images": [{"url": {"url": {"url": "1.jpg"}}}]}, "not a path"),
            ({"images": ["https://a.b/1.jpg", "2.jpg"]}, "web address; download it"),
            ({"image": "3.jpg"}, "'image' has '3.jpg', which is not in 'images'"),
        ]
    ),
    (MIG_BENCH, {"task": None}, "'task' is missing"),
    (TRAJECTORY, {"response": 5}, "'response' is a number"),
    (TRAJECTORY, {"targets": []}, "'targets' is empty"),
    (TRAJECTORY, {"targets": {}}, "'targets' is an object"),
    (TRAJECTORY, {"targets": ["x"]}, "text"),
    (TRAJECTORY, {"targets": [{"box": [1, 2, 3, 4], "image": 3, "label": ""}]}, "image is 3"),
    (TRAJECTORY, {"targets": [{"box": [1, 2, 3, 4], "image": True, "label": ""}]}, "image is"),
    (TRAJECTORY, {"targets": [{"image": 1, "label": ""}]}, "not a list of four"),
    (TRAJECTORY, {"targets": box_of(1, 2, 3)}, "not a list of four"),
    (TRAJECTORY, {"targets": box_of(1, 2, 3.5, 4)}, "four integers"),
    (TRAJECTORY, {"targets": box_of(1, 2, 1001, 4)}, "not inside"),
    (TRAJECTORY, {"targets": box_of(1, 2, 10**400, 4)}, "not inside"),
    (TRAJECTORY, {"targets": box_of(1, 2, 1000.5, 4)}, "not inside"),
    (TRAJECTORY, {"targets": box_of(-0.5, 2, 3, 4)}, "not inside"),
    (TRAJECTORY, {"targets": box_of(0.1, 0.2, 0.3, 0.4)}, "four integers"),
    (TRAJECTORY, {"targets": box_of(1000, 2, 1000.4, 4)}, "inverted or empty"),
    (TRAJECTORY, {"targets": [{"box": [1, 2, 3, 4], "image": 1.5, "label": ""}]}, "image is 1.5"),
    (TRAJECTORY, {"targets": [{"box": [1, 2, 3, 4], "image": NAN, "label": ""}]}, "image is nan"),
    (TRAJECTORY, {"id": 1.5}, "'id' is a number"),
    (TRAJECTORY, {"targets": box_of(3, 2, 1, 4)}, "inverted"),
    (MIG_BENCH, {"answer": [0.1, 0.5, 0.3, 0.4]}, "inverted"),
    (MIG_BENCH, {"answer": [0.1, 0.4, 0.3, 0.4]}, "empty"),
    (MIG_BENCH, {"answer": [0.1, 0.2, 0.3, 1.2]}, "not inside"),
    (MIG_BENCH, {"answer": [-0.1, 0.2, 0.3, 0.4]}, "not inside"),
    (MIG_BENCH, {"answer": [0.1, 0.2, 0.3, 1.0005]}, "not inside"),
    (MIG_BENCH, {"answer": [NAN, 0.2, 0.3, 0.4]}, "not inside"),
    (MIG_BENCH, {"answer": [0.1, 0.2, INFINITY, 0.4]}, "not inside"),
    (MIG_BENCH, {"answer": [0.1, 0.2, 10**400, 0.4]}, "not inside"),
    (MIG_BENCH, {"answer": [0.1, 0.2, 0.1001, 0.4]}, "too small"),
    (MIG_BENCH, {"answer": ["0.1", 0.2, 0.3, 0.4]}, "four numbers"),
    (MIG_BENCH, {"answer": [False, 0.2, True, 0.4]}, "four numbers"),
    (MIG_BENCH, {"answer": "0.1 0.2 0.3 0.4"}, "four numbers"),
    (MGROUNDING, {"videos": ["a.mp4"]}, "the row has videos"),
    (MGROUNDING, {"type": "gg_reg_train"}, "captioning"),
    (MGROUNDING, {"id": "COCO_GG_REG_7"}, "captioning"),
    (MGROUNDING, {"conversations": []}, "empty"),
    (MGROUNDING, {"conversations": "x"}, "text"),
    (MGROUNDING, {"conversations": ["x", "y"]}, "not an object"),
    (MGROUNDING, {"conversations": said(BOX)[:1]}, "in turn"),
    (MGROUNDING, {"conversations": said(BOX)[::-1]}, "in turn"),
    (MGROUNDING, {"conversations": said(BOX, "<image>" * 3)}, "3 <image> marks for 2 images"),
    (MGROUNDING, {"conversations": said(BOX, "<image>") * 3}, "3 <image> marks for 2 images"),
    (MGROUNDING, {"conversations": said(None)}, "'value' is missing"),
    (MGROUNDING, {"conversations": said("A dog and a cat.")}, "no box"),
    (MGROUNDING, {"conversations": said(BOX.replace("10", "310"))}, "not a box on the grid"),
    (MGROUNDING, {"conversations": said(BOX + BOX.replace("400", "1400"))}, "not a box"),
    (MGROUNDING, {"conversations": said(f"In the third image {BOX}")}, "image 3"),
]


@pytest.mark.parametrize(("row", "change", "reason"), BAD_ROWS)
def test_a_bad_row_is_rejected_and_the_others_are_kept(read, row, change, reason):
    name = "rows.jsonl" if row is TRAJECTORY else "rows.json"
    examples, rejected = read([row, {**row, **change}, row], name)
    assert len(examples) == 2
    (bad,) = rejected
    assert bad.source == f"{name} row 1"
    assert reason in bad.reason
    assert "\n" not in bad.reason and len(bad.reason) < 250


@pytest.mark.parametrize("row", [TRAJECTORY, MIG_BENCH, MGROUNDING])
def test_no_field_can_be_left_out_or_be_of_another_type(read, row):
    """Whatever a field holds, the row is read or rejected, and its neighbour is kept."""
    name = "rows.jsonl" if row is TRAJECTORY else "rows.json"
    for field in row:
        for value in (None, 5, -0.5, True, "", "x", [], [None], {}, {"a": 1}, [[1]], 10**400):
            examples, rejected = read([row, {**row, field: value}], name)
            assert len(examples) + len(rejected) == 2
            assert examples[0].source.endswith("row 0")
        optional = ("response", "additional_info", "need_format", "type")
        if "targets" in row:
            optional += ("id", "task")
        if field not in (*optional, *(["id"] if row is MGROUNDING else [])):
            missing = {key: row[key] for key in row if key != field}
            assert len(read([row, missing], name)[1]) == 1
    for value in (None, 5, "x", [], [row]):
        assert len(read([row, value], name)[1]) == 1


def test_numbers_that_are_integers_but_for_rounding(read):
    targets = [
        {"image": 2.0, "box": [1.0, 2, 3.0, 4], "label": ""},
        {"image": None, "box": [-0.3, 0, 1000.4, 1000.0], "label": ""},
    ]
    (example,), rejected = read([{**TRAJECTORY, "id": 3.0, "targets": targets}], "rows.jsonl")
    assert rejected == [] and example.id == "3"
    assert example.targets == (Target((1, 2, 3, 4), 2), Target((0, 0, 1000, 1000), None))
    values = [example.targets[0].image, *example.targets[0].box, *example.targets[1].box]
    assert {type(value) for value in values} == {int}
    (example,), rejected = read([MIG_BENCH | {"answer": [-0.0003, 0, 1.0, 1.0004]}])
    assert rejected == [] and example.targets[0].box == (0, 0, 1000, 1000)


def test_a_plain_row_needs_no_id_no_task_and_no_label(tmp_path):
    row = {
        "images": ["1.jpg"],
        "question": "Where?",
        "targets": [{"image": 1, "box": [1, 2, 3, 4]}],
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (example,), rejected = read_examples(tmp_path / "rows.jsonl")
    assert (example.id, example.task, rejected) == ("unknown_00000", "unknown", [])
    assert example.targets == (Target((1, 2, 3, 4), 1, ""),)
