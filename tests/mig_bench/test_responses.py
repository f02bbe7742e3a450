"""Files of responses, and files that are none."""

import json

import pytest
from bench_rows import file_row

from mirg_jax.errors import DataError
from mirg_jax.mig_bench.responses import load_predictions

GOOD_LINE = json.dumps({"index": 0, "response": "x"})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no predictions"),
        (["", " "], "no predictions"),
        ([GOOD_LINE, GOOD_LINE], "line 2: a second response for index 0"),
        ([GOOD_LINE, "", '{"index": 3, "response": "x"}'], "line 3: index 3 is not a row"),
        (['{"index": -1, "response": "x"}'], "line 1: index -1"),
        ([GOOD_LINE, '{"index": 1, "resp', GOOD_LINE], "line 2: not valid JSON"),
        (['{"index": 1, "resp'], "no predictions"),
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
        load_predictions(path, 3)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_predictions_come_in_any_order_and_may_be_missing(tmp_path):
    path = tmp_path / "out.jsonl"
    lines = [{"index": 2, "response": "é\u2028\n"}, {"index": 0, "response": "", "seconds": 1}]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\r\n" for line in lines))
    assert load_predictions(path, 3) == ["", None, "é\u2028\n"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        ("<!DOCTYPE html>\n<html>Sign in</html>\n", "a page of HTML"),
        ("index,response\n0,x\n", "a table divided by commas"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path, refusal, text, kind):
    path, bench = tmp_path / "out.jsonl", tmp_path / "bench.json"
    path.write_text(text)
    bench.write_text(json.dumps([file_row()]))
    flags = (f"--benchmark={bench}", f"--output={tmp_path / 'scores.json'}")
    line = refusal("score", *flags, f"--predictions={path}")
    assert line.startswith(f"{path}: looks like {kind}") and "\n" not in line
    assert not (tmp_path / "scores.json").exists()
