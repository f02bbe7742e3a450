"""A benchmark's rows: read, chosen from, asked; and files that are no benchmark."""

import json

import pytest
from bench_rows import file_row

from mirg_jax.data.examples import Example
from mirg_jax.errors import DataError
from mirg_jax.mig_bench import benchmark


@pytest.fixture(scope="module")
def rows(shared):
    return benchmark.load_benchmark(shared("mig_bench", "MIG_data.json"))


def test_a_row_has_its_number_and_what_the_file_says(shared, rows):
    content = json.loads(shared("mig_bench", "MIG_data.json").read_text())
    assert [row.index for row in rows] == list(range(4295))
    for row, written in zip(rows, content, strict=True):
        assert (row.task, row.question) == (written["task"], written["question"])
        assert (list(row.images), list(row.answer)) == (written["images"], written["answer"])
    corners = ((row.index, *row.answer) for row in rows)
    inverted = [index for index, x1, y1, x2, y2 in corners if x1 >= x2 or y1 >= y2]
    assert inverted == [7, 105, 126, 163, 512]  # kept, as in the file


def test_target_images_of_the_benchmark(rows):
    known = {}
    for row in rows:
        known.setdefault(row.task, []).append(row.target_image)
    assert set(known["diff"]) == {None}
    assert set(known["view_diff"]) == {2}
    for task in ("group_grounding", "multi_view", "object_tracking", "common_object"):
        assert None not in known[task]
    assert known["group_grounding"][:1] == [1]


def test_some_rows_are_chosen_evenly_and_keep_their_numbers(rows):
    assert benchmark.choose(rows, 0) == benchmark.choose(rows, 5000) == rows
    assert [row.index for row in benchmark.choose(rows, 5)] == [0, 859, 1718, 2577, 3436]
    assert [row.index for row in benchmark.choose(rows[10:], 2)] == [10, 2152]
    assert benchmark.choose(rows[:3], 3) == rows[:3]


def test_a_row_is_asked_without_its_answer(rows):
    row = rows[7]
    assert benchmark.as_example(row, "MIG_data.json") == Example(
        "7", "common_object", row.images, row.question, targets=()
    )
    assert benchmark.as_example(row, "MIG_data.json").source == "MIG_data.json row 7"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("", "the file is empty"),
        (json.dumps([file_row()])[:-20], "not valid JSON"),
        ("[" * 100_000, "not usable JSON"),
        ("[]", "the list of rows is empty"),
        ("{}", "row 0: 'images' is missing"),
        ("3", "holds a number where a list"),
        (b"\xff\xfe", "UTF-8"),
        ([file_row(), 3], "row 1: not an object"),
        ([file_row() | {"task": None}], "row 0: 'task'"),
        ([file_row() | {"question": ""}], "'question'"),
        ([file_row() | {"images": []}], "'images'"),
        ([file_row() | {"images": [1]}], "'images'"),
        ([file_row() | {"answer": [0.1, 0.2, 0.3]}], "'answer'"),
        ([file_row() | {"answer": [0.1, 0.2, 0.3, float("nan")]}], "'answer'"),
        ([file_row() | {"answer": [100, 200, 300, 400]}], "'answer'"),
        ([file_row() | {"answer": [True, 0, 1, 1]}], "'answer'"),
    ],
)
def test_bad_benchmark_is_named_in_one_line(tmp_path, content, message):
    path = tmp_path / "bench.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=message) as error:
        benchmark.load_benchmark(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
