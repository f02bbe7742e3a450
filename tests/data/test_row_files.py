"""Files of rows: lists and lines, and files that can't be used."""

import bz2
import functools
import gzip
import io
import itertools
import json
import lzma
import tarfile
import zipfile

import pytest
from data_rows import MGROUNDING, MIG_BENCH, TRAJECTORY, read_content
from PIL import Image

from mirg_jax.data.examples import DataError, read_examples


@pytest.fixture
def read(tmp_path):
    return functools.partial(read_content, tmp_path)


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
        (b'[{"id": "\xff"}]', "rows.json", "not UTF-8 text .byte 9"),
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


def test_text_may_hold_any_character(read):
    question = "Où? \u2028 \x85 \x0b 犬"
    line = json.dumps({**TRAJECTORY, "question": question}, ensure_ascii=False)
    (example,), _ = read(line, "rows.jsonl")
    assert example.question == question
    (example,), _ = read(b"\xef\xbb\xbf" + json.dumps([{**MIG_BENCH, "id": 7}]).encode())
    assert example.id == "7"


@pytest.mark.parametrize("row", [TRAJECTORY, MIG_BENCH, MGROUNDING])
def test_rows_packed_by_gzip(read, row):
    rows = [{**row, "id": name} for name in "ab"]
    for text in (json.dumps(rows), "\n".join(map(json.dumps, rows))):
        examples, rejected = read(gzip.compress(text.encode()), "rows.jsonl.gz")
        assert [example.id for example in examples] == ["a", "b"] and rejected == []
        assert examples == read(text, "rows.jsonl")[0]
    packed = gzip.compress(json.dumps(rows).encode())
    for broken in (packed[:-9], packed[:-9] + b"123456789", packed[:4], packed[:20] + b"\xff" * 9):
        with pytest.raises(DataError, match="rows.gz: gzip data that can't be unpacked .* again$"):
            read(broken, "rows.gz")


GOOD = {"images": ["a.png"], "question": "?", "targets": [{"image": 1, "box": [1, 2, 3, 4]}]}


@pytest.mark.parametrize(
    "rows, missing",
    [
        (
            [{"img_path": "a.png", "Problem": "?", "bbox": [1, 2, 3, 4]}],
            "trajectories: rename 'img_path' to 'images'; rename 'Problem' to 'question'; "
            "write 'bbox' as \"targets\": ",
        ),
        ([{"images": ["a.png"], "question": "?"}], 'trajectories: add the boxes, as "targets"'),
        ([{"image": "a.png", "conversation": []}], "rename 'conversation' to 'conversations'"),
        (
            [{"images": ["a.png"], "prompt": "?", "boxes": []}],
            "'prompt' to 'question'; write 'boxes'",
        ),
        ({"version": 1, "data": [GOOD]}, "the rows are in its 'data'"),
        ({"train": [GOOD], "test": [GOOD]}, "the rows are in its 'train' and 'test'"),
        ({"a": GOOD, "b": GOOD}, "its values are the rows; write a list of them"),
        ({"images": [], "annotations": [], "categories": []}, "scripts/compose.py makes rows"),
    ],
)
def test_a_file_that_almost_fits_is_told_what_is_missing(read, rows, missing):
    with pytest.raises(DataError) as caught:
        read(json.dumps(rows))
    line = str(caught.value)
    assert "rows.json: no row has" in line and missing in line and "\n" not in line


def test_a_file_of_another_subject_is_told_nothing_of_the_kind(read):
    for row in ({"a": 1}, {"text": "Hello"}, {"image": "a.png"}):
        with pytest.raises(DataError) as caught:
            read([row])
        assert "nearest" not in str(caught.value)


def test_images_under_another_name(read):
    row = {name: value for name, value in MGROUNDING.items() if name != "images"}
    _, (bad,) = read([row | {"image_paths": ["1.jpg"]}])
    assert bad.reason == "'images' is missing; rename 'image_paths'"


PLAIN = [{"id": 1, "question": "Where?"}]


def image(kind):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, kind)
    return buffer.getvalue()


def packed_in_zip():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("rows.json", json.dumps(PLAIN))
    return buffer.getvalue()


def packed_in_tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("rows.json"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content, kind",
    [
        (image("PNG"), "a PNG image"),
        (image("JPEG"), "a JPEG image"),
        (image("WEBP"), "in RIFF"),
        (packed_in_tar(), "a tar archive.*unpack it"),
        (gzip.compress(packed_in_tar()), "a tar archive.*unpack it"),
        (lzma.compress(b"[]"), "xz data"),
        (bz2.compress(b"[]"), "bzip2 data"),
        (packed_in_zip(), "a zip archive"),
        (b"\x89HDF\r\n\x1a\n\xff", "an HDF5 file.*to_json"),
        (b"id,question,answer\n1,Where?,x\n", "divided by commas .CSV"),
        (b'"id","images"\n"1","a.png"\n', "divided by commas"),
        (b"1,2,3\n4,5,6\n", "divided by commas"),
        (b"id\timages\n1\ta.png\n", "divided by tabs"),
        (b"id;images\r\n1;a.png\r\n", "divided by semicolons"),
        (b"- id: 1\n  question: Where?\n", "YAML"),
        (b"---\nrows:\n", "YAML"),
        (b"\xef\xbb\xbfrows:\n  - id: 1\n", "YAML"),
        (b"<!DOCTYPE html>\n<html>Sign in</html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS.*git lfs pull"),
        (json.dumps(PLAIN).encode("utf-16"), "UTF-16.*save it as UTF-8"),
        (str(PLAIN[0]).encode(), "as Python prints them.*json.dumps"),
        (str(PLAIN).encode(), "as Python prints them"),
        (b"Where is the dog?\n", "plain text"),
    ],
    ids=itertools.count(),  # archives have the time at which they were made
)
def test_files_of_other_kinds_are_named(read, content, kind):
    with pytest.raises(DataError, match=f"rows.json: looks like .*{kind}") as caught:
        read(content)
    line = str(caught.value)
    assert "a JSON list or JSON lines are needed" in line and "column" not in line
    assert "\n" not in line and len(line.partition(": looks")[2]) < 250
