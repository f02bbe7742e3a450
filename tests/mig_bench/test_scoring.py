"""MIG-Bench scoring against an independent reading of the authors' rules and the paper's tables."""

import hashlib
import json
import random
import time

import numpy as np
import pytest
from authors_rule import FORMS, answer_box, qwen, reference_box, reference_iou
from bench_rows import file_row, rows_of
from conftest import call
from PIL import Image

from mirg_jax.data.image_hashes import ImageHashes
from mirg_jax.errors import DataError
from mirg_jax.grounding import grammar
from mirg_jax.grounding.tasks import MIG_BENCH_TASKS
from mirg_jax.mig_bench import scoring, tables

# The authors' protocol ----------------------------------------------------------------------------


@pytest.mark.parametrize("scale_y", [False, True])
def test_authors_protocol_equals_an_independent_reading_on_every_row(benchmark, scale_y):
    rng = random.Random(0)
    responses, expected = [], []
    for index, item in enumerate(benchmark):
        jittered = [max(0, v + rng.randint(-120, 120)) for v in answer_box(item)]
        responses.append(FORMS[index % len(FORMS)](jittered))
        box, single = reference_box(responses[-1])
        if box and single and scale_y:
            box[1] = round(min(box[1] * 1.05, 0.999), 3)
            box[3] = round(min(box[3] * 1.10, 0.999), 3)
        expected.append(reference_iou(item.answer, box))

    scores = scoring.score(benchmark, responses, "authors", scale_y=scale_y)
    assert [r.iou for r in scores.rows] == expected
    assert [r.hit for r in scores.rows] == [iou >= 0.5 for iou in expected]
    assert 0.1 < scores.overall.hit_rate < 0.9  # the comparison saw both
    for threshold, accuracy in scores.overall.accuracy.items():
        assert accuracy == pytest.approx(np.mean(np.array(expected) >= threshold))
    assert scores.overall.mean_iou == pytest.approx(np.mean(expected))
    assert scores.overall.image_accuracy is scores.overall.format_rate is None


@pytest.mark.parametrize("protocol", ["answer", "authors"])
def test_answers_without_any_box_are_pointed_out(protocol):
    rows = rows_of([file_row() for _ in range(3)])
    scores = scoring.score(rows, [None, "I see no dog.", "(1,2) or [1, 2, 3]"], protocol)
    (note,) = tables.notes(scores)
    assert "none of 2 responses has a box" in note and "the first: 'I see no dog.'" in note
    for fine in (["x", "(100,200),(500,600)", None], [None] * 3):
        assert scoring.score(rows, fine, protocol).without_box is None


@pytest.mark.parametrize(
    "form",
    [
        '[{{"bbox_2d": [{}, {}, {}, {}], "label": "dog"}}]',
        "<box>[[{},{},{},{}]]</box>",
        "({},{}),({},{})",  # special tokens were left out
    ],
)
def test_answers_in_another_family_s_form_are_pointed_out(form):
    rows = rows_of([file_row() for _ in range(5)])
    other = [form.format(100, 200, 500, 600)] * 4
    ours = grammar.format_response("t", grammar.format_box((100, 200, 500, 600)))
    scores = scoring.score(rows, [*other, ours])
    assert (scores.other_form, scores.overall.hit_rate) == (4, 0.2)
    (note,) = tables.notes(scores)
    assert "4 of 5 responses" in note and "--family" in note and "coordinates=pixels" in note
    for fine in ([ours] * 5, [None] * 5, [*["I see no dog."] * 4, ours], [*other[:2], *[ours] * 3]):
        assert tables.notes(scoring.score(rows, fine)) == []
    # The authors' rule reads all forms.
    assert tables.notes(scoring.score(rows, [*other, ours], "authors")) == []


# The answer protocol ------------------------------------------------------------------------------

THOUGHT = "I see <bbox_id>[1-1]</bbox_id><|object_ref_start|>a dog<|object_ref_end|>"
THOUGHT += "<|box_start|>(1,2),(3,4)<|box_end|>."


def test_thoughts_count_for_the_authors_and_not_for_the_answer():
    hit, miss = "<|box_start|>(100,200),(500,600)<|box_end|>", THOUGHT
    in_answer = grammar.format_response(miss, hit)
    in_thoughts = grammar.format_response(hit, "none")
    rows = rows_of([file_row(), file_row()])
    answer = scoring.score(rows, [in_answer, in_thoughts], "answer")
    authors = scoring.score(rows, [in_answer, in_thoughts], "authors")
    assert [r.hit for r in answer.rows] == [True, False]
    assert [r.hit for r in authors.rows] == [False, True]
    assert (answer.protocol, authors.protocol) == ("answer", "authors")


def test_scores_of_some_rows_have_the_numbers_of_the_file(benchmark):
    some = benchmark[100::1000]
    box = grammar.format_response("", grammar.format_box(answer_box(some[1])))
    scores = scoring.score(some, [None, box, None, None, "x"])
    assert [row.index for row in scores.rows] == [100, 1100, 2100, 3100, 4100]
    assert [row.hit for row in scores.rows] == [False, True, False, False, False]
    assert scores.missing == 3
    assert scores.to_json()["rows"][1]["index"] == 1100


def test_image_and_format_figures():
    located = "It is in the second image. <|box_start|>(1,2),(3,4)<|box_end|>. "
    rows = [file_row("group_grounding", question="A dog in the first image", info=located)] * 3
    rows += [file_row("reasoning", question="What is in image-1? Find it in Image-2.")]
    rows += [file_row("diff")]
    box = "<|box_start|>(100,200),(500,600)<|box_end|>"
    full = grammar.format_response("", f"<bbox_id>[2-1]</bbox_id>{box}")
    wrong = full.replace("[2-1]", "[1-1]")
    scores = scoring.score(rows_of(rows), [full, wrong, None, f"In the second image {box}", full])
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
    assert time.process_time() - start < 20
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
        rows += [file_row(task)] * count
        responses += ["(100,200),(500,600)"] * hit + ["(0,0),(1,1)"] * (count - hit)
    return scoring.score(rows_of(rows), responses, "authors")


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
    scores = scoring.score(
        rows_of([file_row("region"), file_row("my_task")]), [hit, None], "authors"
    )
    assert (scores.spontaneous, scores.referential, scores.average) == (None, 1.0, 0.5)
    header, line = tables.format_table({"mine": scores}).splitlines()
    assert "my_task" in header
    header = header.replace("AVE 95%", "AVE_95%")
    cells = dict(zip(header.split(), line.split(), strict=True))
    assert cells["Region"] == "100.00" and cells["Static"] == "-" and cells["AVE"] == "50.00"
    assert cells["protocol"] == "authors" and cells["missing"] == "1"


def test_score_refuses_what_it_cannot_score():
    rows, impossible = rows_of([file_row()]), rows_of([file_row(answer=(0.5, 0.1, 0.2, 0.3))])
    with pytest.raises(ValueError, match="protocol"):
        scoring.score(rows, [None], "author")
    with pytest.raises(ValueError):
        scoring.score(rows, [])
    with pytest.raises(DataError, match="no row"):
        scoring.score(impossible, [None], skip_impossible=True)


# The binary ---------------------------------------------------------------------------------------


def test_score_binary(tmp_path, refusal, capsys):
    bench, predictions = tmp_path / "bench.json", tmp_path / "mine.jsonl"
    output = tmp_path / "new" / "scores.json"
    rows = [file_row(), file_row("region"), file_row(answer=(0.5, 0.2, 0.1, 0.6))]
    bench.write_text(json.dumps(rows))
    predictions.write_text(json.dumps({"index": 1, "response": qwen((100, 200, 500, 600))}))
    flags = (f"--benchmark={bench}", f"--predictions={predictions}", f"--output={output}")

    result = call("score", *flags, "--protocol=authors", "--skip_impossible")
    assert (result.returncode, result.stderr) == (0, "")
    assert "mine" in result.stdout and "authors protocol, 2 rows, 1 without" in result.stdout
    written = json.loads(output.read_text())
    assert written["protocol"] == "authors" and written["overall"]["n"] == 2
    assert written["tasks"]["region"]["accuracy"]["0.5"] == 1
    assert written["average"] == 0.5 and len(written["average_interval"]) == 3
    assert [r["index"] for r in written["rows"]] == [0, 1]

    predictions.write_text(json.dumps({"index": 1, "response": "I see no dog."}))
    assert refusal("score", *flags) == ""
    told = capsys.readouterr()
    assert "has a box" in told.err and "0.00" in told.out
    assert json.loads(output.read_text())["without_box"] == "I see no dog."
    predictions.write_text(json.dumps({"index": 1, "response": qwen((100, 200, 500, 600))}))

    assert refusal("score", *flags, "--migician_scaling") == ""
    assert json.loads(output.read_text())["scale_y"] is True


def test_predictions_of_another_benchmark_are_not_scored(tmp_path, refusal, capsys):
    bench, predictions = tmp_path / "bench.json", tmp_path / "eval/predictions.jsonl"
    predictions.parent.mkdir()
    bench.write_text(json.dumps([file_row()]))
    predictions.write_text(json.dumps({"index": 0, "response": qwen((100, 200, 500, 600))}))
    output = tmp_path / "scores.json"
    score = "score", f"--benchmark={bench}", f"--output={output}", f"--predictions={predictions}"
    report = "report", score[1], f"--output={tmp_path}/a.html", f"--predictions=a={predictions}"
    sha256 = hashlib.sha256(bench.read_bytes()).hexdigest()
    record, told = predictions.parent / "run.json", "doesn't record benchmark_sha256"
    for facts, refused, line in (
        (None, False, ""),  # of any system
        ({"benchmark_sha256": sha256}, False, ""),
        ({"benchmark": "bench.json"}, False, told),  # of an earlier version
        ({"benchmark_sha256": "a" * 64}, True, ""),
    ):
        if facts is not None:
            record.write_text(json.dumps(facts))
        for binary in (score, report):
            said = refusal(*binary)
            assert bool(said) == refused and ("of other content than" in said) == refused
            assert (told in capsys.readouterr().err) == bool(line)
    assert json.loads(output.read_text())["benchmark_sha256"] == sha256

    record.write_text(json.dumps({"benchmark_sha256": sha256, "family": "mirg"}))
    assert refusal(*score) == capsys.readouterr().err == ""
    record.write_text(json.dumps({"benchmark_sha256": sha256, "family": "internvl2"}))
    assert refusal(*score) == ""
    said = capsys.readouterr().err
    assert "asked for with family=internvl2" in said and "now scored with family=mirg" in said
    asked = {"benchmark_sha256": sha256, "coordinates": "pixels", "min_pixels": 200704}
    record.write_text(json.dumps(asked))  # as evaluate.py does
    for binary in (score, report):
        assert refusal(*binary) == ""
        assert "asked for with family=qwen2_5_vl" in capsys.readouterr().err
    Image.new("RGB", (100, 100)).save(tmp_path / "1.png")
    refusal(*score, "--family=qwen2_5_vl", f"--image_root={tmp_path}")
    assert "asked for with min_pixels=200704" in capsys.readouterr().err


def test_predictions_about_other_images_are_told(tmp_path, refusal, capsys):
    bench, predictions = tmp_path / "bench.json", tmp_path / "predictions.jsonl"
    rows = [file_row(), file_row()]
    bench.write_text(json.dumps(rows))
    for path in {path for row in rows for path in row["images"]}:
        Image.new("RGB", (60, 40)).save(tmp_path / path)
    about = ImageHashes(tmp_path).of(rows[0]["images"])
    score = "score", f"--benchmark={bench}", f"--predictions={predictions}"
    score += (f"--output={tmp_path}/scores.json",)
    report = "report", f"--benchmark={bench}", f"--predictions=a={predictions}"
    report += (f"--output={tmp_path}/a.html",)
    first = {"index": 0, "response": qwen((100, 200, 500, 600)), "images": about}

    def told(images, *roots):
        other = first | {"index": 1, "images": images}
        predictions.write_text("".join(json.dumps(line) + "\n" for line in (first, other)))
        for binary in (score, report):
            assert refusal(*binary, *roots) == ""
            yield "1 predictions were made about other images" in capsys.readouterr().err

    root = f"--image_root={tmp_path}"
    assert not any(told("0" * 32))  # nothing to compare with
    assert all(told("0" * 32, root)) and all(told(f"{about[:32]}.{'0' * 32}", root))
    for known in (about, about[:32], None, ["a.jpg"], "a.jpg"):  # the last ones of any system
        assert not any(told(known, root))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benchmark": "none.json"}, "none.json: cannot be read"),
        ({"predictions": "cut.jsonl"}, "cut.jsonl: holds no predictions"),
        ({"output": "bench.json/scores.json"}, "cannot be written"),
        ({"protocol": "paper"}, "--protocol=paper"),
        ({"split": "test"}, "Unknown command line flag 'split'"),
        ({"benchmark": None}, "--benchmark"),
    ],
)
def test_score_binary_fails_in_one_line_with_status_2(tmp_path, change, message):
    good = json.dumps({"index": 0, "response": "x"})
    (tmp_path / "bench.json").write_text(json.dumps([file_row()]))
    (tmp_path / "good.jsonl").write_text(good)
    (tmp_path / "cut.jsonl").write_text(good[:-5])
    flags = {"benchmark": "bench.json", "predictions": "good.jsonl", "output": "scores.json"}
    files = {"benchmark", "predictions", "output"}
    result = call(
        "score",
        *(
            f"--{name}={tmp_path / value if name in files else value}"
            for name, value in (flags | change).items()
            if value is not None
        ),
    )
    assert result.returncode == 2
    assert message in result.stderr and result.stderr.count("\n") == 1
