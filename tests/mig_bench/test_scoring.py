"""MIG-Bench scoring against an independent reading of the authors' rules and the paper's tables."""

import json
import os
import pathlib
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from mirg_jax.errors import DataError
from mirg_jax.grounding import grammar
from mirg_jax.grounding.tasks import MIG_BENCH_TASKS
from mirg_jax.mig_bench import scoring

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

# An independent reading of the authors' rule: templates walked character by character.
# i: digits, f: digits with a point between, _: optional blanks, +: blanks, else the character.
TEMPLATES = (
    "(i,_i),_(i,_i)",
    "[f,_f,_f,_f]",
    "(f,f),(f,f)",
    "(f,_f,_f,_f)",
    "[i,_i,_i,_i]",
    "<box>i+i+i+i</box>",
)


def digits(text, start):
    end = start
    while end < len(text) and text[end].isdecimal():
        end += 1
    return end


def walk(template, text, position):
    """Numbers and end of the template at a position, or None."""
    numbers = []
    for symbol in template:
        start = position
        if symbol in "if":
            position = digits(text, start)
            if position == start:
                return None
            if symbol == "f":
                if text[position : position + 1] != ".":
                    return None
                point = position + 1
                position = digits(text, point)
                if position == point:
                    return None
            numbers.append(float(text[start:position]))
        elif symbol in "_+":
            while position < len(text) and text[position].isspace():
                position += 1
            if symbol == "+" and position == start:
                return None
        elif text[position : position + 1] == symbol:
            position += 1
        else:
            return None
    return numbers, position


def reference_box(text):
    for template in TEMPLATES:
        found, position = [], 0
        while position < len(text):
            if text[position] == template[0] and (match := walk(template, text, position)):
                found.append(match[0])
                position = match[1]
            else:
                position += 1
        if len(found) == 1:
            return [v / 1000 if v >= 1 else v for v in found[0]], True
        if found:
            return [v / 1000 if v > 1 else v for v in found[0]], False
    return None, False


def reference_iou(truth, box):
    if box is None:
        return 0.0
    width = min(truth[2], box[2]) - max(truth[0], box[0])
    height = min(truth[3], box[3]) - max(truth[1], box[1])
    if width <= 0 or height <= 0:
        return 0.0
    overlap = width * height
    areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (truth, box))
    return overlap / (areas - overlap)


def qwen(b):
    return "<|box_start|>({},{}),({},{})<|box_end|>".format(*b)


def fractions(b):
    return ["0." + f"{min(v, 999):03d}" for v in b]


FAMILIES = (
    qwen,
    lambda b: "({}, {}),  ({}, {})".format(*b),
    lambda b: "<box>[[{}, {}, {}, {}]]</box>".format(*b),
    lambda b: "<box>{} {} {} {}</box>".format(*b),
    lambda b: "<box>[{}, {}, {}, {}]</box>".format(*fractions(b)),
    lambda b: "It is at [{},{},{},{}].".format(*fractions(b)),
    lambda b: "({},{}),({},{})".format(*fractions(b)),
    lambda b: "({}, {}),({}, {})".format(*fractions(b)),  # blanks that no pattern allows
    lambda b: "({}, {}, {}, {})".format(*fractions(b)),
    lambda b: "In the third image, 2 dogs. " + qwen(b) + " and not " + qwen((0, 1, 2, 3)),
    lambda b: qwen((1, 0, 1, 1000)) + qwen(b),
    lambda b: "<box>[1, 1, 1, 1]</box> or [{}, {}, {}, {}]".format(*b),
    lambda b: qwen((b[2], b[3], b[0], b[1])),
    lambda b: "I cannot see any difference between these two images.",
    lambda b: "",
    lambda b: f"<think>{qwen((1, 2, 900, 900))}</think><answer>{qwen(b)}</answer>",
    lambda b: "[{}, {}, {}, {}]".format(*(9 * 10**400 + v for v in b)),
)


def row(task="diff", answer=(0.1, 0.2, 0.5, 0.6), images=2, question="Where?", info=""):
    return {
        "task": task,
        "images": [f"{i}.jpg" for i in range(images)],
        "question": question,
        "answer": list(answer),
        "additional_info": info,
        "need_format": True,
    }


def answer_box(row):
    x1, y1, x2, y2 = (min(round(1000 * v), 1000) for v in row["answer"])
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


@pytest.fixture(scope="module")
def benchmark(shared):
    return scoring.load_benchmark(shared("mig_bench", "MIG_data.json"))


# The authors' protocol ----------------------------------------------------------------------------


@pytest.mark.parametrize("scale_y", [False, True])
def test_authors_protocol_equals_an_independent_reading_on_every_row(benchmark, scale_y):
    rng = random.Random(0)
    responses, expected = [], []
    for index, item in enumerate(benchmark):
        jittered = [max(0, v + rng.randint(-120, 120)) for v in answer_box(item)]
        responses.append(FAMILIES[index % len(FAMILIES)](jittered))
        box, single = reference_box(responses[-1])
        if box and single and scale_y:
            box[1] = round(min(box[1] * 1.05, 0.999), 3)
            box[3] = round(min(box[3] * 1.10, 0.999), 3)
        expected.append(reference_iou(item["answer"], box))

    scores = scoring.score(benchmark, responses, "authors", scale_y=scale_y)
    assert [r.iou for r in scores.rows] == expected
    assert [r.hit for r in scores.rows] == [iou >= 0.5 for iou in expected]
    assert 0.1 < scores.overall.hit_rate < 0.9  # the comparison saw both
    for threshold, accuracy in scores.overall.accuracy.items():
        assert accuracy == pytest.approx(np.mean(np.array(expected) >= threshold))
    assert scores.overall.mean_iou == pytest.approx(np.mean(expected))
    assert scores.overall.image_accuracy is scores.overall.format_rate is None


def test_authors_parse_equals_the_independent_reading_on_broken_text():
    rng = random.Random(1)
    pieces = [
        "(",
        ")",
        "[",
        "]",
        ",",
        ", ",
        " ",
        "<box>",
        "</box>",
        "1",
        "0",
        "0.5",
        "1.0",
        ".",
        "7",
    ]
    pieces += ["(1,2),(30,40)", "[0.1, 0.2,0.3,1.0]", "[5,6, 7,800]", "<box>1  2\t3 4</box>", "٣"]
    found = 0
    for _ in range(5000):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 12)))
        box, _ = reference_box(text)
        assert scoring.parse_authors(text) == (tuple(box) if box else None), text
        found += box is not None
    assert 1000 < found < 4900


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("(0,1),(999,1000)", (0, 0.001, 0.999, 1.0)),
        ("(0,1),(999,1000)(5,5),(6,6)", (0, 1, 0.999, 1.0)),  # among several, 1 stays 1
        ("[0.5, 0.25, 1.0, 0.75]", (0.5, 0.25, 0.001, 0.75)),
        ("<box>[[10, 20, 30, 40]]</box>", (0.01, 0.02, 0.03, 0.04)),
        ("<box>10 20 30 40</box>", (0.01, 0.02, 0.03, 0.04)),
        ("[1,2,3,4] (500,600),(700,800)", (0.5, 0.6, 0.7, 0.8)),  # the order of the patterns
        ("(0.1, 0.2),(0.3, 0.4)", None),
        ("(-1,2),(3,4)", None),
        ("10 20 30 40", None),
    ],
)
def test_authors_parse(text, box):
    assert scoring.parse_authors(text) == box


def test_migician_scaling_is_left_out_when_there_are_several_boxes():
    text = "(100,200),(300,400)"
    assert scoring.parse_authors(text, scale_y=True) == (0.1, 0.21, 0.3, 0.44)
    assert scoring.parse_authors(text + text, scale_y=True) == (0.1, 0.2, 0.3, 0.4)
    assert scoring.parse_authors("(1,980),(3,990)", scale_y=True)[1::2] == (0.999, 0.999)


# The answer protocol ------------------------------------------------------------------------------

THOUGHT = "I see <bbox_id>[1-1]</bbox_id><|object_ref_start|>a dog<|object_ref_end|>"
THOUGHT += "<|box_start|>(1,2),(3,4)<|box_end|>."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            grammar.format_response(
                THOUGHT, "<bbox_id>[2-1]</bbox_id><|box_start|>(100,200),(500,600)<|box_end|>"
            ),
            ((0.1, 0.2, 0.5, 0.6), 2, True),
        ),
        (
            grammar.format_response(THOUGHT, "<bbox_id>[1-1]</bbox_id>"),
            ((0.001, 0.002, 0.003, 0.004), 1, True),
        ),
        (grammar.format_response(THOUGHT, "nowhere"), (None, None, False)),
        (f"<think>{THOUGHT}</think>", (None, None, False)),
        (
            f"<think>{THOUGHT}</think>It's in the second image. " + qwen((100, 200, 500, 600)),
            ((0.1, 0.2, 0.5, 0.6), 2, False),
        ),
        ("<|box_start|>(100,200),(500,600)<|box_end|>", ((0.1, 0.2, 0.5, 0.6), None, False)),
        ("", (None, None, False)),
    ],
)
def test_answer_parse(text, expected):
    assert scoring.parse_answer(text, num_images=3) == expected


def test_thoughts_count_for_the_authors_and_not_for_the_answer():
    hit, miss = "<|box_start|>(100,200),(500,600)<|box_end|>", THOUGHT
    in_answer = grammar.format_response(miss, hit)
    in_thoughts = grammar.format_response(hit, "none")
    rows = [row(), row()]
    answer = scoring.score(rows, [in_answer, in_thoughts], "answer")
    authors = scoring.score(rows, [in_answer, in_thoughts], "authors")
    assert [r.hit for r in answer.rows] == [True, False]
    assert [r.hit for r in authors.rows] == [False, True]
    assert (answer.protocol, authors.protocol) == ("answer", "authors")


def test_image_and_format_figures():
    located = "It is in the second image. <|box_start|>(1,2),(3,4)<|box_end|>. "
    rows = [row("group_grounding", question="A dog in the first image", info=located)] * 3
    rows += [row("reasoning", question="What is in image-1? Find it in Image-2.")]
    rows += [row("diff")]
    box = "<|box_start|>(100,200),(500,600)<|box_end|>"
    full = grammar.format_response("", f"<bbox_id>[2-1]</bbox_id>{box}")
    wrong = full.replace("[2-1]", "[1-1]")
    scores = scoring.score(rows, [full, wrong, None, f"In the second image {box}", full])
    assert [r.target_image for r in scores.rows] == [2, 2, 2, 2, None]
    assert [r.image for r in scores.rows] == [2, 1, None, 2, 2]
    assert scores.overall.image_n == 4
    assert scores.overall.image_accuracy == 2 / 4
    assert scores.tasks["group_grounding"].image_accuracy == pytest.approx(1 / 3)
    assert scores.tasks["diff"].image_accuracy is None
    assert scores.overall.format_rate == 3 / 5
    assert scores.overall.hit_rate == 4 / 5  # the wrong image is no miss, as in the benchmark
    assert scores.missing == 1


def test_perfect_answers_hit_all_but_the_inverted_rows(benchmark):
    responses = [grammar.format_response("", grammar.format_box(answer_box(r))) for r in benchmark]
    start = time.process_time()
    scores = scoring.score(benchmark, responses)
    assert time.process_time() - start < 2
    assert [r.index for r in scores.rows if not r.hit] == [7, 105, 126, 163, 512]
    assert scores.tasks["common_object"].hit_rate == 811 / 816
    assert {name: task.n for name, task in scores.tasks.items()} == {
        "diff": 528, "view_diff": 94, "common_object": 816, "object_tracking": 550,
        "multi_view": 288, "region": 1203, "refer_grounding": 99, "group_grounding": 499,
        "reasoning": 101, "correspondence": 117,
    }  # fmt: skip
    possible = scoring.score(benchmark, responses, skip_impossible=True)
    assert possible.tasks["common_object"].n == 811
    assert possible.average == possible.overall.hit_rate == 1


def test_target_images_of_the_benchmark(benchmark):
    known = {}
    for item in benchmark:
        known.setdefault(item["task"], []).append(scoring.target_image(item))
    assert set(known["diff"]) == {None}
    assert set(known["view_diff"]) == {2}
    for task in ("group_grounding", "multi_view", "object_tracking", "common_object"):
        assert None not in known[task]
    assert known["group_grounding"][:1] == [1]


# The paper's arithmetic ---------------------------------------------------------------------------

# Rows of each task, and the hits that give the row of Migician and (nearly) of Qwen2-VL-72B in
# table 1, in the order of its columns.
COUNTS = (528, 94, 816, 550, 288, 1203, 99, 499, 101, 117)
MIGICIAN = (344, 44, 687, 389, 173, 894, 76, 332, 60, 40)
QWEN_72B = (243.5, 44, 526, 147, 65, 224, 33, 312, 51, 20)
TABLE_1 = (65.15, 46.81, 84.19, 70.73, 60.07, 74.31, 76.77, 66.53, 59.41, 34.19)


def score_hits(hits, repeat=1):
    rows, responses = [], []
    for task, count, hit in zip(MIG_BENCH_TASKS, COUNTS, hits, strict=True):
        count, hit = count * repeat, round(hit * repeat)
        rows += [row(task)] * count
        responses += ["(100,200),(500,600)"] * hit + ["(0,0),(1,1)"] * (count - hit)
    return scoring.score(rows, responses, "authors")


def test_averages_are_those_of_the_paper():
    migician = score_hits(MIGICIAN)
    rates = [100 * task.hit_rate for task in migician.tasks.values()]
    assert list(migician.tasks) == list(MIG_BENCH_TASKS)
    np.testing.assert_allclose(rates, TABLE_1, atol=0.006)
    assert 100 * migician.average == pytest.approx(63.82, abs=0.006)

    qwen_72b = score_hits(QWEN_72B, repeat=2)
    assert 100 * qwen_72b.average == pytest.approx(38.88, abs=0.006)
    assert 100 * qwen_72b.spontaneous == pytest.approx(52.46, abs=0.006)
    assert 100 * qwen_72b.referential == pytest.approx(33.05, abs=0.006)


def test_groups_and_tasks_that_are_absent_do_not_count():
    hit = "(100,200),(500,600)"
    scores = scoring.score([row("region"), row("my_task")], [hit, None], "authors")
    assert (scores.spontaneous, scores.referential, scores.average) == (None, 1.0, 0.5)
    header, line = scoring.format_table({"mine": scores}).splitlines()
    assert "my_task" in header
    cells = dict(zip(header.split(), line.split(), strict=True))
    assert cells["Region"] == "100.00" and cells["Static"] == "-" and cells["AVE"] == "50.00"
    assert cells["protocol"] == "authors" and cells["missing"] == "1"


def test_score_refuses_what_it_cannot_score():
    with pytest.raises(ValueError, match="protocol"):
        scoring.score([row()], [None], "author")
    with pytest.raises(ValueError):
        scoring.score([row()], [])
    with pytest.raises(DataError, match="no row"):
        scoring.score([row(answer=(0.5, 0.1, 0.2, 0.3))], [None], skip_impossible=True)


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("", "not valid JSON"),
        (json.dumps([row()])[:-20], "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "non-empty list"),
        ("{}", "non-empty list"),
        (b"\xff\xfe", "UTF-8"),
        ([row(), 3], "row 1: not an object"),
        ([row() | {"task": None}], "row 0: 'task'"),
        ([row() | {"question": ""}], "'question'"),
        ([row() | {"images": []}], "'images'"),
        ([row() | {"images": [1]}], "'images'"),
        ([row() | {"answer": [0.1, 0.2, 0.3]}], "'answer'"),
        ([row() | {"answer": [0.1, 0.2, 0.3, float("nan")]}], "'answer'"),
        ([row() | {"answer": [100, 200, 300, 400]}], "'answer'"),
        ([row() | {"answer": [True, 0, 1, 1]}], "'answer'"),
    ],
)
def test_bad_benchmark_is_named_in_one_line(tmp_path, content, message):
    path = tmp_path / "bench.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=message) as error:
        scoring.load_benchmark(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


GOOD_LINE = json.dumps({"index": 0, "response": "x"})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no predictions"),
        (["", " "], "no predictions"),
        ([GOOD_LINE, GOOD_LINE], "line 2: a second response for index 0"),
        ([GOOD_LINE, "", '{"index": 3, "response": "x"}'], "line 3: index 3 is not a row"),
        (['{"index": -1, "response": "x"}'], "line 1: index -1"),
        ([GOOD_LINE, '{"index": 1, "resp'], "line 2: not valid JSON"),
        (['{"index": "0", "response": "x"}'], "line 1: expected"),
        (['{"index": true, "response": "x"}'], "line 1: expected"),
        (['{"index": 0, "response": null}'], "line 1: expected"),
        (['{"index": 0}'], "line 1: expected"),
        (["[0]"], "line 1: expected"),
    ],
)
def test_bad_predictions_are_named_in_one_line(tmp_path, lines, message):
    path = tmp_path / "out.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=message) as error:
        scoring.load_predictions(path, 3)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_predictions_come_in_any_order_and_may_be_missing(tmp_path):
    path = tmp_path / "out.jsonl"
    lines = [{"index": 2, "response": "é\u2028\n"}, {"index": 0, "response": "", "seconds": 1}]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\r\n" for line in lines))
    assert scoring.load_predictions(path, 3) == ["", None, "é\u2028\n"]


# The binary ---------------------------------------------------------------------------------------


def run_score(*flags):
    return subprocess.run(
        [sys.executable, REPOSITORY / "scripts" / "score.py", *flags],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )


def test_score_binary(tmp_path):
    bench, predictions = tmp_path / "bench.json", tmp_path / "mine.jsonl"
    output = tmp_path / "new" / "scores.json"
    bench.write_text(json.dumps([row(), row("region"), row(answer=(0.5, 0.2, 0.1, 0.6))]))
    predictions.write_text(json.dumps({"index": 1, "response": qwen((100, 200, 500, 600))}))
    flags = (f"--benchmark={bench}", f"--predictions={predictions}", f"--output={output}")

    result = run_score(*flags, "--protocol=authors", "--skip_impossible")
    assert (result.returncode, result.stderr) == (0, "")
    assert "mine" in result.stdout and "authors protocol, 2 rows, 1 without" in result.stdout
    written = json.loads(output.read_text())
    assert written["protocol"] == "authors" and written["overall"]["n"] == 2
    assert written["tasks"]["region"]["accuracy"]["0.5"] == 1
    assert written["average"] == 0.5 and len(written["average_interval"]) == 3
    assert [r["index"] for r in written["rows"]] == [0, 1]

    result = run_score(*flags, "--migician_scaling")
    assert result.returncode == 0 and json.loads(output.read_text())["scale_y"] is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benchmark": "none.json"}, "none.json: cannot be read"),
        ({"predictions": "cut.jsonl"}, "cut.jsonl line 1: not valid JSON"),
        ({"output": "bench.json/scores.json"}, "cannot be written"),
        ({"protocol": "paper"}, "--protocol=paper"),
        ({"split": "test"}, "Unknown command line flag 'split'"),
        ({"benchmark": None}, "--benchmark"),
    ],
)
def test_score_binary_fails_in_one_line_with_status_2(tmp_path, change, message):
    (tmp_path / "bench.json").write_text(json.dumps([row()]))
    (tmp_path / "good.jsonl").write_text(GOOD_LINE)
    (tmp_path / "cut.jsonl").write_text(GOOD_LINE[:-5])
    flags = {"benchmark": "bench.json", "predictions": "good.jsonl", "output": "scores.json"}
    files = {"benchmark", "predictions", "output"}
    result = run_score(
        *(
            f"--{name}={tmp_path / value if name in files else value}"
            for name, value in (flags | change).items()
            if value is not None
        )
    )
    assert result.returncode == 2
    assert message in result.stderr and result.stderr.count("\n") == 1
