"""Which version of MIG-Bench a file is, and that results say so."""

import dataclasses
import json

from mirg_jax.mig_bench import versions
from mirg_jax.mig_bench.benchmark import load_benchmark

FIRST = "MIG-Bench, 4,295 rows, first version"


def test_the_published_file_is_known_by_its_rows(shared, tmp_path):
    path = shared("mig_bench", "MIG_data.json")
    rows = load_benchmark(path)
    assert versions.name_of(rows) == FIRST
    lines = tmp_path / "same.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in json.loads(path.read_text())))
    assert versions.name_of(load_benchmark(lines)) == FIRST  # whatever the layout
    corrected = dataclasses.replace(rows[7], answer=(0.1, 0.1, 0.2, 0.2))
    changed = [*rows[:7], corrected, *rows[8:]]
    assert versions.name_of(changed) == "another file, 4,295 rows"
    assert versions.name_of(rows[::-1]) == "another file, 4,295 rows"
    assert versions.name_of(rows[19:]).startswith("another file, 4,276 rows, as many as")


def test_scores_and_report_say_which_it_is(scenes, tmp_path, refusal, capsys):
    rows = load_benchmark(scenes / "eval.json")
    name = f"another file, {len(rows)} rows"
    predictions = tmp_path / "predictions.jsonl"
    predictions.write_text('{"index": 0, "response": "(1,2),(3,4)"}\n')
    flags = (f"--benchmark={scenes}/eval.json",)
    scores, page = tmp_path / "scores.json", tmp_path / "report.html"
    assert refusal("score", *flags, f"--predictions={predictions}", f"--output={scores}") == ""
    assert json.loads(scores.read_text())["benchmark_name"] == name
    assert f"benchmark: {name}\n" in capsys.readouterr().out
    assert refusal("report", *flags, f"--predictions=a={predictions}", f"--output={page}") == ""
    assert f"Benchmark: {name}." in page.read_text()
