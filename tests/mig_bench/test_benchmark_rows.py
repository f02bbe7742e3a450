"""A benchmark's rows: read, chosen from, asked; and files that are no benchmark."""

import collections
import json

import pytest
from bench_rows import file_row, rows_of

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


def made_up(tasks):
    return rows_of([file_row(task=task) for task in tasks])


ROUND = ["diff", "region", "multi_view", "reasoning", "refer_grounding", "common_object", "t7"]


@pytest.mark.parametrize("count", [7, 70, 105, 110, 154, 385])
@pytest.mark.parametrize(
    "tasks",
    [
        ROUND * 110,  # goes round the tasks, as scenes do: every 7th row is of one task
        [task for task in ROUND for _ in range(110)],  # task by task
        ["diff", "region"] * 385,
        [task for pair in zip(ROUND * 55, ROUND * 55, strict=True) for task in pair],
    ],
)
def test_some_rows_are_of_all_tasks_in_proportion(tasks, count):
    rows = made_up(tasks)
    chosen = benchmark.choose(rows, count)
    assert len(chosen) == count and len({row.index for row in chosen}) == count
    assert [row.index for row in chosen] == sorted(row.index for row in chosen)
    drawn = collections.Counter(row.task for row in chosen)
    assert drawn.keys() == set(tasks)
    for task, number in drawn.items():
        assert abs(number - count * tasks.count(task) / len(tasks)) <= 1
    # Not by their place within a task either: every 2nd, 5th or 10th of them may be alike.
    places = [[row.index for row in rows if row.task == "diff"].index(row.index)
              for row in chosen if row.task == "diff"]  # fmt: skip
    if len(places) >= 15:
        assert len({b - a for a, b in zip(places, places[1:], strict=False)}) > 3


def test_a_larger_limit_adds_rows_and_small_tasks_are_drawn_too():
    rows = made_up(["diff"] * 300 + ["region"] * 30 + ["multi_view"] * 3)
    drawn = [{row.index for row in benchmark.choose(rows, count)} for count in range(1, 334)]
    assert all(a < b for a, b in zip(drawn, drawn[1:], strict=False))
    tasks = collections.Counter(row.task for row in benchmark.choose(rows, 40))
    assert tasks == {"diff": 35, "region": 4, "multi_view": 1}
    assert benchmark.choose(rows, 0) == benchmark.choose(rows, 5000) == rows


def test_some_rows_of_the_benchmark(rows):
    chosen = benchmark.choose(rows, 430)
    tasks = collections.Counter(row.task for row in chosen)
    whole = collections.Counter(row.task for row in rows)
    assert all(abs(tasks[task] - count / 10) <= 2 for task, count in whole.items())


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
        ("null", "holds null where a list of rows is needed; give one"),
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


def test_training_rows_with_one_box_are_a_benchmark(tmp_path):
    row = {"images": ["1.jpg", "2.jpg"], "question": "Where is the dog?"}
    target = {"image": 2, "box": [100, 200, 300, 400], "label": "dog"}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row | {"targets": [target], "task": "mine"}))
    (found,) = benchmark.load_benchmark(path)
    assert found == benchmark.Row(
        0, "mine", ("1.jpg", "2.jpg"), "Where is the dog?", (0.1, 0.2, 0.3, 0.4), 2
    )
    path.write_text(json.dumps(row | {"targets": [target] * 2}))
    with pytest.raises(DataError, match="row 0: 'targets' has 2 boxes"):
        benchmark.load_benchmark(path)


def test_rows_with_unclear_questions_are_told(tmp_path, capsys):
    unclear = "Find the dog of image 1 next to that of image 2."
    questions = ["Where is it?", "Find it in image 2.", unclear]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([file_row("region", question=question) for question in questions]))
    assert [row.target_image for row in benchmark.load_benchmark(path)] == [None, 2, None]
    said = capsys.readouterr().err
    assert f"{path}: 1 of 3 rows don't count for the image" in said and said.count("\n") == 1
    assert 'the first, row 2: it names "image 1", "image 2"' in said
    path.write_text(json.dumps([file_row(question="Find it in image 2.")]))
    benchmark.load_benchmark(path)
    assert capsys.readouterr().err == ""
