"""Images in base64, and other data of any length, are never quoted at length."""

import base64
import json

import numpy as np
import pytest
from bench_rows import file_row
from conftest import REPOSITORY

from mirg_jax import cli
from mirg_jax.chat.completions import quote_words
from mirg_jax.data.examples import Rejected, read_examples
from mirg_jax.data.pipeline import RejectedLog
from mirg_jax.errors import DataError, UserError, shorten
from mirg_jax.inference.predictor import _open_image
from mirg_jax.mig_bench.benchmark import load_benchmark

DATA = base64.b64encode(np.random.default_rng(0).bytes(600_000)).decode()
URL = f"data:image/jpeg;base64,{DATA}"
BOX = "<|box_start|>(1,2),(3,4)<|box_end|>"
TURNS = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": BOX}]
ROWS = {
    "mgrounding.json": {"id": "a", "images": ["a.png"], "conversations": TURNS, "type": "t"},
    "mig_bench.json": file_row(),
    "trajectories.jsonl": {
        "id": "a",
        "task": "diff",
        "images": ["a.png"],
        "question": "Where?",
        "targets": [{"image": 1, "box": [1, 2, 3, 4], "label": "dog"}],
    },
}


def changed(row):
    """The row with data in place of each field, and as its image in several ways."""
    for name in row:
        yield row | {name: URL}
        yield row | {name: [DATA]}
        yield row | {name: {"bytes": DATA}}
    yield row | {"images": ["a.png", URL]}
    yield row | {"images": [DATA]}
    yield row | {"images": [{"url": URL}]}


@pytest.mark.parametrize("name", ROWS)
def test_reasons_are_short(tmp_path, name):
    rows = list(changed(ROWS[name]))
    path = tmp_path / name
    whole = path.suffix == ".json"
    path.write_text(json.dumps(rows) if whole else "".join(json.dumps(r) + "\n" for r in rows))
    _, rejected = read_examples(path)
    assert len(rejected) > len(rows) / 2
    log = RejectedLog(tmp_path / "rejected.jsonl")
    for row in rejected:
        assert len(row.reason) <= 500 and len(row.id) <= 200
        log.add(row)
    assert (tmp_path / "rejected.jsonl").stat().st_size < 1000 * len(rejected)
    assert sum("given in base64" in row.reason for row in rejected) >= 3


def test_benchmarks_with_data_in_them_are_named_in_a_short_line(tmp_path):
    for row in changed(ROWS["mig_bench.json"]):
        (tmp_path / "rows.json").write_text(json.dumps([row]))
        try:
            load_benchmark(tmp_path / "rows.json")
        except DataError as error:
            assert len(str(error)) < 500 + len(str(tmp_path))


def test_an_image_in_base64_is_no_path():
    for image in (URL, DATA):
        with pytest.raises(DataError, match="in base64 .*save it as a file") as error:
            _open_image(image, upright=False)
        assert len(str(error.value)) < 200


def test_the_line_of_a_binary_is_short(capsys):
    with pytest.raises(SystemExit) as ended:
        cli._fail(UserError(f"row 3: {URL} and {'words ' * 9999}"))
    line = capsys.readouterr().err
    assert ended.value.code == 2 and len(line) < 2100 and line.count("\n") == 1
    assert "row 3" in line and DATA[1000:1100] not in line


@pytest.mark.parametrize("data", [URL, DATA, DATA.encode().hex()])
def test_a_flag_with_data_in_it_is_told_why(data, refusal, tiny_model, tmp_path):
    flags = (f"--checkpoint={tiny_model}", "--query=Where?", f"--output={tmp_path / 'a.png'}")
    line = refusal("ground", *flags, f"--images={data}")
    assert len(line) < 500 and data[1000:1100] not in line and "\n" not in line
    assert "--images=" in line and "field larger than field limit" in line


@pytest.mark.parametrize(
    "image",
    [DATA, URL, DATA.encode().hex(), {"bytes": list(DATA.encode())}, {"url": URL}, {"data": DATA}],
)
def test_a_row_with_data_in_it_is_told_in_a_short_line(image, refusal, tiny_model, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(ROWS["trajectories.jsonl"] | {"images": [image]}) + "\n")
    flags = (f"--rows={rows}", f"--image_root={tmp_path}", f"--checkpoint={tiny_model}")
    config = f"--config={REPOSITORY}/configs/grpo_tiny.py"
    line = refusal("rate_rows", config, *flags, f"--output_dir={tmp_path / 'out'}")
    assert "rows.jsonl row 0: " in line and len(line) < 400 + len(str(tmp_path))
    assert DATA[1000:1100] not in line and "\n" not in line


@pytest.mark.parametrize("data", [URL, URL[:300], DATA, "A" * 1500])
def test_rows_and_servers_words_leave_out_the_same(data):
    text = f"no image: {data} (row 3)"
    short = shorten(text, 500)
    assert short == quote_words(text) and short.startswith(f"no image: {data[:20]}")
    assert len(short) < 70 and "…" in short


def test_what_is_short_stays():
    text = "image '/a/rather/long/path/of/a/file.png': no such file; check the image root"
    assert shorten(text, 500) == text and Rejected("a", "b", text).reason == text
    assert shorten("a" * 400 + "b" * 400, 100) == "a" * 47 + " ... " + "b" * 47
