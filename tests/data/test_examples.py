"""Readers of the three formats, on real files and on bad ones, and their writers."""

import collections
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mirg_jax.data.examples import (
    DataError,
    Example,
    Target,
    read_examples,
    write_mgrounding,
    write_mig_bench,
    write_trajectories,
)
from mirg_jax.grounding.tasks import MIG_BENCH_TASKS

BOX = "<|box_start|>(10,20),(300,400)<|box_end|>"
TRAJECTORY = {
    "id": "a",
    "task": "diff",
    "images": ["1.jpg", "2.jpg"],
    "question": "<image><image>What differs?",
    "targets": [{"image": 2, "box": [1, 2, 3, 4], "label": "cup"}],
    "response": "<think>hm</think><answer></answer>",
}
MIG_BENCH = {
    "task": "diff",
    "images": ["1.jpg", "2.jpg"],
    "question": "What differs?",
    "answer": [0.1, 0.2, 0.3, 0.4],
    "additional_info": "",
    "need_format": True,
}
MGROUNDING = {
    "id": "a",
    "images": ["1.jpg", "2.jpg"],
    "conversations": [
        {"from": "human", "value": "<image>\n<image>\nWhere is the dog?"},
        {"from": "gpt", "value": f"It's in the second image. {BOX}"},
    ],
    "type": "gg_train",
}


@pytest.fixture
def read(tmp_path):
    """Reads rows given as Python objects, or the text of a file."""

    def read(content, name="rows.json"):
        path = tmp_path / name
        if isinstance(content, list):
            lines = "\n".join(map(json.dumps, content))
            content = lines if name.endswith("l") else json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_examples(path)

    return read


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


# Files that can't be used -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "rows.json", "empty"),
        (" \n", "rows.jsonl", "empty"),
        ("[]", "rows.json", "empty"),
        ("[1, 2]", "rows.json", "no row has"),
        ('[{"a": 1}]', "rows.json", "no row has"),
        ('{"rows": []}', "rows.json", r"no row has .* the fields of the first are \['rows'\]"),
        ('{"id": "a"}', "rows.jsonl", "no row has"),
        ("null", "rows.json", "needed"),
        ("[" * 100_000, "rows.json", "not usable JSON"),
        ("[" + "9" * 5000 + "]", "rows.json", "not usable JSON"),
        (b"\xff\xd8\xff\xe0 a picture", "rows.json", "byte 0"),
        ('{"id": "a"}\n\n{"id": ', "rows.jsonl", "line 3, column 8"),
    ],
)
def test_unusable_files(read, content, name, message):
    with pytest.raises(DataError, match=message) as caught:
        read(content, name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("row", [TRAJECTORY, MIG_BENCH, MGROUNDING])
@pytest.mark.parametrize("indent", [None, 1])
def test_lists_and_lines_are_told_apart_by_content(read, row, indent):
    """Whatever a file is called: a list, lines, or one object behind the other."""
    lines = "\n".join(json.dumps({**row, "id": name}, indent=indent) for name in "ab") + "\n"
    listed = json.dumps([{**row, "id": name} for name in "ab"], indent=indent)
    for name in ("rows.json", "rows.jsonl", "rows.txt", "rows"):
        for content in (lines, listed, lines.replace("\n", "\r\n"), "\ufeff" + lines):
            examples, rejected = read(content, name)
            assert [example.id for example in examples] == ["a", "b"] and rejected == []
    (one,), _ = read(json.dumps(row, indent=indent), "rows.json")
    assert one.images == ("1.jpg", "2.jpg")


def test_missing_files(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(DataError, match="check the path"):
            read_examples(path)


@pytest.mark.parametrize("name", ["train.json", "eval.json"])
def test_a_cut_file_is_no_data_set(shared, read, name):
    text = shared("real_photos", name).read_text()
    for fraction in (0.01, 0.3, 0.5, 0.99):
        cut = text[: int(len(text) * fraction)]
        with pytest.raises(DataError, match=r"at line \d+, column \d+ .* cut"):
            read(cut)


# Rows that can't be used --------------------------------------------------------------------------


def box_of(*values):
    return [{"image": 1, "box": list(values), "label": ""}]


def said(value, question="<image>Where?"):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": value}]


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
            ({"question": "\ud800"}, "surrogate"),
            ({"task": None}, "'task' is missing"),
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
    (TRAJECTORY, {"id": None}, "'id' is missing"),
    (TRAJECTORY, {"response": 5}, "'response' is a number"),
    (TRAJECTORY, {"targets": []}, "'targets' is empty"),
    (TRAJECTORY, {"targets": {}}, "'targets' is an object"),
    (TRAJECTORY, {"targets": ["x"]}, "text"),
    (TRAJECTORY, {"targets": [{"box": [1, 2, 3, 4], "image": 1}]}, "'label' is missing"),
    (TRAJECTORY, {"targets": [{"box": [1, 2, 3, 4], "image": 3, "label": ""}]}, "image is 3"),
    (TRAJECTORY, {"targets": [{"box": [1, 2, 3, 4], "image": True, "label": ""}]}, "image is"),
    (TRAJECTORY, {"targets": [{"image": 1, "label": ""}]}, "not a list of four"),
    (TRAJECTORY, {"targets": box_of(1, 2, 3)}, "not a list of four"),
    (TRAJECTORY, {"targets": box_of(1, 2, 3.5, 4)}, "four integers"),
    (TRAJECTORY, {"targets": box_of(1, 2, 1001, 4)}, "not inside"),
    (TRAJECTORY, {"targets": box_of(1, 2, 10**400, 4)}, "not inside"),
    (TRAJECTORY, {"targets": box_of(3, 2, 1, 4)}, "inverted"),
    (MIG_BENCH, {"answer": [0.1, 0.5, 0.3, 0.4]}, "inverted"),
    (MIG_BENCH, {"answer": [0.1, 0.4, 0.3, 0.4]}, "empty"),
    (MIG_BENCH, {"answer": [0.1, 0.2, 0.3, 1.2]}, "not inside"),
    (MIG_BENCH, {"answer": [-0.1, 0.2, 0.3, 0.4]}, "not inside"),
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
        if field not in (*optional, *(["id"] if row is MGROUNDING else [])):
            missing = {key: row[key] for key in row if key != field}
            assert len(read([row, missing], name)[1]) == 1
    for value in (None, 5, "x", [], [row]):
        assert len(read([row, value], name)[1]) == 1


def test_a_bad_turn_leaves_the_other_turns(read):
    row = {**MGROUNDING, "conversations": said("none") + said(BOX) + said(BOX, "Image-2?")}
    examples, rejected = read([{**row, "images": ["1.jpg", "2.jpg"]}])
    assert [(turn.id, turn.targets[0].image) for turn in examples] == [("a#2", None), ("a#3", 2)]
    assert [(turn.id, turn.reason) for turn in rejected] == [("a", "the answer holds no box")]


def test_the_answers_wording_comes_before_the_questions(read):
    conversations = said(f"It's in the second image. {BOX}", "Not as in the first image")
    (example,), _ = read([{**MGROUNDING, "conversations": conversations}])
    assert example.targets == (Target((10, 20, 300, 400), 2),)


def chat(*turns, **more):
    """A row as chat data have it, without an id."""
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"messages": messages, "images": ["1.jpg", "2.jpg"], **more}


ASKED, ANSWERED = ("user", "<image><image>Where is the dog?"), ("assistant", f"Image-2: {BOX}")


@pytest.mark.parametrize(
    "row, images",
    [
        (chat(ASKED, ANSWERED), ["1.jpg", "2.jpg"]),
        (chat(("system", "You see boxes."), ASKED, ANSWERED), ["1.jpg", "2.jpg"]),
        (chat(("human", "<image>Where?"), ("gpt", BOX), images=["1.jpg"]), ["1.jpg"]),
        ({"conversations": chat(ASKED, ANSWERED)["messages"], "image": ["a", "b"], "id": 3}, "ab"),
        ({"conversations": said(BOX), "image": "1.jpg", "id": "a"}, ["1.jpg"]),
        ({"messages": said(BOX), "image": "1.jpg", "images": None}, ["1.jpg"]),
        # As LLaMA-Factory has them, and as tables do, whose rows have all columns.
        ({"conversations": said(BOX), "images": ["1.jpg"]}, ["1.jpg"]),
        ({"conversations": said(BOX), "images": ["1.jpg"], "id": None, "system": None}, ["1.jpg"]),
        (chat(ASKED, ANSWERED, conversations=None, question=None, answer=None), ["1.jpg", "2.jpg"]),
        (
            {
                "messages": [
                    {"from": None, "value": None, "role": role, "content": content}
                    for role, content in (ASKED, ANSWERED)
                ],
                "images": [{"bytes": None, "path": "1.jpg"}, {"url": "file:///d/2%20b.jpg"}],
            },
            ["1.jpg", "/d/2 b.jpg"],
        ),
    ],
)
def test_other_forms_of_conversations(read, row, images):
    (example,), rejected = read([row], "rows.jsonl")
    assert rejected == [] and example.images == tuple(images)
    assert example.targets[0].box == (10, 20, 300, 400)
    assert example.question.startswith("<image>")
    assert example.id == str(row.get("id") or "unknown_00000")


def test_contents_in_parts(read):
    text, image = {"type": "text", "text": "Where?"}, {"type": "image"}
    inside = [image | {"image": "1.jpg"}, text, image | {"image": "2.jpg"}]
    answer = ("assistant", [{"type": "text", "text": f"Image-2: {BOX}"}])
    row = chat(("user", inside), answer)
    del row["images"]
    beside = chat(("user", [image, text, image]), answer)
    for example in read([row, beside])[0]:
        assert example.question == "<image>Where?<image>"
        assert example.images == ("1.jpg", "2.jpg")
        assert example.targets == (Target((10, 20, 300, 400), 2),)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "2.jpg", "detail": "high"}},
        {"type": "image_url", "image_url": "2.jpg"},
        {"type": "input_image", "image_url": "2.jpg"},
        {"type": "image", "path": "2.jpg", "text": None},
        {"type": "image", "url": "2.jpg"},
        {"type": "image", "image": {"bytes": None, "path": "2.jpg"}},
        {"image": "2.jpg"},
    ],
)
def test_forms_of_an_images_part(read, part):
    asked = ("user", [{"type": "image", "image": "1.jpg"}, part, {"text": "Where?"}])
    rows = [chat(asked, ANSWERED, **images) for images in ({}, {"images": []}, {"images": None})]
    rows[0]["images"] = [{"path": "1.jpg"}, "2.jpg"]
    examples, rejected = read(rows)
    assert rejected == [] and len(examples) == 3
    for example in examples:
        assert example.images == ("1.jpg", "2.jpg")
        assert example.question == "<image><image>Where?"
    rows[0]["images"] = ["1.jpg", "3.jpg"]
    _, (bad,) = read(rows)
    assert bad.source == "rows.json row 0"
    assert "image '2.jpg' where 'images' has '3.jpg'; remove the wrong one" in bad.reason


IMAGE = {"type": "image", "image": "1.jpg"}


@pytest.mark.parametrize(
    "row, reason",
    [
        (chat(("user", [IMAGE | {"image": "2.jpg"}, ASKED[1]]), ANSWERED), "'1.jpg'; remove"),
        (chat(("user", [{"type": "image", "base64": "/9j/4"}]), ANSWERED), "given in 'base64'"),
        (
            chat(("user", [{"type": "image_url", "image_url": {"url": "http://a"}}]), ANSWERED),
            "web address",
        ),
        (chat(("system", [IMAGE]), ASKED, ANSWERED), "system message has an image"),
        (chat(ASKED, ("assistant", [IMAGE])), "an answer has an image"),
        (chat(("system", "You see boxes.")), "in turn"),
        (chat(ASKED, ANSWERED, ("system", "x"), ANSWERED), "in turn"),
        (chat(ASKED, ANSWERED, ASKED), "in turn"),
        (chat(ASKED, ("tool", BOX)), "in turn"),
        (chat(("user", None), ANSWERED), "'content' is missing"),
        (chat(("user", [{"type": "video"}]), ANSWERED), "neither text nor an image"),
        (chat(("user", [{"type": "image"}] * 3), ANSWERED), "3 <image> marks for 2 images"),
        (chat(ASKED, ANSWERED, images=None, image=""), "not a path"),
        (chat(ASKED, ANSWERED, images=None, image=7), "'images' is missing"),
        ({"messages": [["user", "Where?"]], "images": ["1.jpg"]}, "not an object"),
    ],
)
def test_conversations_that_cannot_be_used(read, row, reason):
    examples, (bad,) = read([row, chat(ASKED, ANSWERED)])
    assert len(examples) == 1 and reason in bad.reason


def test_text_may_hold_any_character(read):
    question = "Où? \u2028 \x85 \x0b 犬"
    line = json.dumps({**TRAJECTORY, "question": question}, ensure_ascii=False)
    (example,), _ = read(line, "rows.jsonl")
    assert example.question == question
    (example,), _ = read(b"\xef\xbb\xbf" + json.dumps([{**MIG_BENCH, "id": 7}]).encode())
    assert example.id == "7"


# Writers ------------------------------------------------------------------------------------------

sides = st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True).map(sorted)
boxes = st.tuples(sides, sides).map(lambda xy: (xy[0][0], xy[1][0], xy[0][1], xy[1][1]))
plain = st.text("abc é犬.?\n", min_size=1, max_size=9)
labels = plain.map(str.strip)
questions = st.sampled_from(["Where? ", "<image>\n<image>\nWhere is it?", "Locate it in image-2."])
examples = st.builds(
    Example,
    id=plain,
    task=st.sampled_from(sorted(MIG_BENCH_TASKS)),
    images=st.just(("./a/1.jpg", "b/é 2.png", "3.jpg")),
    question=questions,
    targets=st.lists(
        st.builds(Target, boxes, st.integers(1, 3), labels), min_size=1, max_size=3
    ).map(tuple),
)
in_tmp_path = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@in_tmp_path
@given(st.lists(examples, min_size=1, max_size=3), st.none() | plain)
def test_trajectories_come_back(tmp_path, originals, response):
    originals = [
        Example(**{**vars(example), "response": response, "source": "elsewhere row 3"})
        for example in originals
    ]
    write_trajectories(tmp_path / "rows.jsonl", originals)
    assert read_examples(tmp_path / "rows.jsonl") == (originals, [])


@in_tmp_path
@given(st.lists(examples, min_size=1, max_size=3))
def test_mgrounding_comes_back(tmp_path, originals):
    write_mgrounding(tmp_path / "rows.json", originals)
    assert read_examples(tmp_path / "rows.json") == (originals, [])


@in_tmp_path
@given(st.lists(examples, min_size=1, max_size=3))
def test_mig_bench_comes_back(tmp_path, originals):
    originals = [
        Example(**{**vars(e), "targets": (Target(e.targets[0].box, e.targets[0].image),)})
        for e in originals
    ]
    write_mig_bench(tmp_path / "rows.json", originals)
    assert read_examples(tmp_path / "rows.json") == (originals, [])


def test_real_files_come_back(shared, tmp_path):
    train, _ = read_examples(shared("real_photos", "train.json"))
    for write, name in ((write_mgrounding, "rows.json"), (write_trajectories, "rows.jsonl")):
        write(tmp_path / name, train)
        assert read_examples(tmp_path / name) == (train, [])
    for path in (shared("real_photos", "eval.json"), shared("mig_bench", "MIG_data.json")):
        examples, _ = read_examples(path)
        write_mig_bench(tmp_path / "rows.json", examples)
        assert read_examples(tmp_path / "rows.json") == (examples, [])


def test_what_a_format_cannot_hold_is_refused(tmp_path):
    target = Target((1, 2, 3, 4), 1)
    two = Example("a", "diff", ("1.jpg",), "?", (target, target))
    with pytest.raises(DataError, match="2 boxes"):
        write_mig_bench(tmp_path / "rows.json", [two])
    misnamed = Example("a_view_diff_1", "diff", ("1.jpg",), "?", (target,))
    with pytest.raises(DataError, match="another task"):
        write_mgrounding(tmp_path / "rows.json", [misnamed])
