"""Two runs beside each other, against counting by hand."""

import json

import pytest
from bench_rows import rows_of
from conftest import call

from mirg_jax.errors import DataError
from mirg_jax.mig_bench import compare, scoring

ANSWER = (0.1, 0.1, 0.5, 0.5)
HIT, MISS = "(100,100),(500,500)", "(600,600),(900,900)"


def row(task="diff"):
    return {"task": task, "question": "Where?", "images": ["a.jpg", "b.jpg"], "answer": [*ANSWER]}


def run(rows, answers, path=None, **how):
    scores = scoring.score(rows_of(rows), answers, "authors", **how).to_json()
    if path:
        path.write_text(json.dumps(scores))
    return json.loads(json.dumps(scores))


def test_what_was_gained_and_lost():
    rows = [row(), row(), row("region"), row("region"), row("region"), row("of my own")]
    before = run(rows, [HIT, MISS, MISS, HIT, MISS, None])
    after = run(rows, [HIT, HIT, HIT, MISS, HIT, HIT])
    changes = compare.compare(before, after)
    assert list(changes) == ["diff", "region", "of my own", "all"]
    assert (changes["diff"].gained, changes["diff"].lost) == ((1,), ())
    assert (changes["region"].gained, changes["region"].lost) == ((2, 4), (3,))
    everything = changes["all"]
    assert (everything.gained, everything.lost) == ((1, 2, 4, 5), (3,))
    assert everything.difference.mean == pytest.approx(everything.after - everything.before)
    assert everything.difference.mean == pytest.approx(3 / 6)
    assert everything.mean_iou == pytest.approx(3 / 6)
    assert everything.p == pytest.approx(2 * (1 + 5) / 2**5)
    back = compare.compare(after, before)["all"]
    assert (back.gained, back.lost) == (everything.lost, everything.gained)
    same = compare.compare(before, before)["all"]
    assert same.p == 1 and same.difference == (0, 0, 0)


def test_runs_that_cannot_be_compared_are_refused():
    rows = [row(), row("region")]
    one = run(rows, [HIT, HIT])
    with pytest.raises(DataError, match="strict"):
        compare.compare(one, run(rows, [HIT, HIT], strict=True))
    with pytest.raises(DataError, match="same rows"):
        compare.compare(one, run(rows[:1], [HIT]))
    with pytest.raises(DataError, match="same rows"):
        compare.compare(one, run(rows[::-1], [HIT, HIT]))


def test_scores_of_another_benchmark(tmp_path, refusal, capsys):
    rows = [row(), row("region")]
    paths = [tmp_path / name / "scores.json" for name in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
    one, two = (run(rows, [HIT, MISS], path) for path in paths)
    flags = f"--before={paths[0]}", f"--after={paths[1]}"
    assert refusal("compare", *flags) == ""
    told = capsys.readouterr().err.splitlines()  # as earlier versions wrote them
    assert [str(path) in line for path, line in zip(paths, told, strict=True)] == [True, True]
    assert all("without recording its benchmark" in line for line in told)

    paths[0].write_text(json.dumps({"benchmark_sha256": "a" * 64} | one))
    paths[1].write_text(json.dumps({"benchmark_sha256": "b" * 64} | two))
    assert "benchmarks of different content" in refusal("compare", *flags)
    paths[1].write_text(json.dumps({"benchmark_sha256": "a" * 64} | two))
    assert refusal("compare", *flags) == "" and capsys.readouterr().err == ""
    # What the scores don't record, the folder of an evaluation does.
    paths[1].write_text(json.dumps(two))
    for record, line in (
        ({"benchmark_sha256": "b" * 64}, "benchmarks of different content"),
        ({"benchmark_sha256": "a" * 64}, ""),
        ({"benchmark": "rows.json"}, ""),
        ([], ""),
    ):
        (tmp_path / "two/run.json").write_text(json.dumps(record))
        refused = refusal("compare", *flags)
        assert line in refused and bool(line) == bool(refused)
        unknown = "without recording its benchmark" in capsys.readouterr().err
        assert unknown == ("benchmark_sha256" not in record)


def test_scores_about_other_images_are_told(tmp_path, refusal, capsys):
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    one, two = (run([row(), row("region")], [HIT, MISS], path) for path in paths)
    flags, told = [f"--before={paths[0]}", f"--after={paths[1]}"], "images of other content"
    for first, second, said in (("a", "b", True), ("a", "a", False), ("a", None, False)):
        paths[0].write_text(json.dumps({"images": first} | one))
        paths[1].write_text(json.dumps({"images": second} | two))
        assert refusal("compare", *flags) == "" and (told in capsys.readouterr().err) == said


@pytest.mark.parametrize(
    "field, value",
    [("index", "0"), ("index", None), ("index", 1), ("task", ["diff"]), ("task", None)]
    + [("iou", "0.5"), ("iou", 10**400), ("iou", float("nan")), ("hit", 1), ("hit", "yes")],
)
def test_scores_of_odd_types_are_named(tmp_path, field, value, refusal):
    path = tmp_path / "a.json"
    scores = run([row(), row("region")], [HIT, MISS], path)
    scores["rows"][0][field] = value
    (tmp_path / "b.json").write_text(json.dumps(scores))
    line = refusal("compare", f"--before={path}", f"--after={tmp_path / 'b.json'}")
    expected = "same index" if value == 1 and field == "index" else f"rows[0] has {field}="
    assert line.startswith(f"{tmp_path}/b.json: ") and expected in line
    assert len(line) < 200 + len(str(tmp_path)) and "scripts/score.py" in line


@pytest.mark.parametrize("text", ["[]", '{"rows": {}}', '{"rows": [1]}', "[" * 100_000, "7"])
def test_files_that_hold_no_scores(tmp_path, text):
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"scores\.json: .*make them with scripts/score.py"):
        compare.read_scores(path)


def test_compare_as_a_user_runs_it(tmp_path, refusal):
    rows = [row() for _ in range(4)]
    run(rows, [MISS, MISS, HIT, HIT], tmp_path / "a.json")
    run(rows, [HIT, HIT, HIT, MISS], tmp_path / "b.json")
    files = f"--before={tmp_path}/a.json", f"--after={tmp_path}/b.json"
    done = call("compare", *files, f"--output={tmp_path}/out/changes.json")
    assert done.returncode == 0, done.stderr
    assert "Static" in done.stdout and "+25.00" in done.stdout
    written = json.loads((tmp_path / "out/changes.json").read_text())
    assert written["all"]["gained"] == [0, 1] and written["all"]["lost"] == [3]

    (tmp_path / "b.json").write_text('{"rows": []}')
    line = refusal("compare", *files)
    assert "b.json: not the scores of a run" in line and "\n" not in line
