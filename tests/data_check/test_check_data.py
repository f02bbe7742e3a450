"""scripts/check_data.py: the forms that it takes, what it says of them, and what it leaves."""

import dataclasses
import gzip
import itertools
import json
import os
import re
import shutil
import signal
import sys
import threading

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import REPOSITORY, binary, page_data
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mirg_jax import cli
from mirg_jax.data.examples import Rejected, read_examples
from mirg_jax.data_check import check, survey
from mirg_jax.data_check.survey import Counts, Measured
from mirg_jax.errors import DataError
from mirg_jax.runs.settings import read
from mirg_jax.runs.tokenizer import load_tokenizer
from mirg_jax.training import usable


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


@pytest.fixture
def flags(tiny_model, scenes):
    """The flags of a recipe on these scenes, but for the stage."""
    return [f"--config.model.path={tiny_model}", f"--config.data.image_root={scenes}"]


@pytest.fixture
def check_data(flags, refusal, capsys):
    """Runs the binary; returns what it prints, and the line in which it ends."""

    def run(*arguments, kind="sft") -> tuple[str, str]:
        config = f"--config={REPOSITORY}/configs/{kind}_tiny.py"
        line = refusal("check_data", config, *flags, *arguments)
        return capsys.readouterr().out, line

    return run


# Forms --------------------------------------------------------------------------------------------


@pytest.fixture
def rows(scenes) -> list[dict]:
    return json.loads((scenes / "sft.json").read_text())


def as_messages(row: dict) -> dict:
    """The same row as chat data have it, its images in parts of the question."""
    question, answer = (turn["value"] for turn in row["conversations"])
    pieces = question.split("<image>")
    content = [{"type": "text", "text": pieces[0]}] * bool(pieces[0])
    paths = row["images"]
    for path, text in zip(paths, [*pieces[1:], *[""] * len(paths)], strict=False):
        content += [{"type": "image", "image": path}, {"type": "text", "text": text}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"id": row["id"], "type": row.get("type"), "messages": turns}


def as_share_gpt(row: dict) -> dict:
    turns = [
        {"from": name, "value": turn["value"]}
        for name, turn in zip(("human", "chatgpt"), row["conversations"], strict=True)
    ]
    kept = {name: row[name] for name in ("id", "images", "type") if name in row}
    return kept | {"system": "You help.", "conversations": turns}


def with_bytes(row: dict, root) -> dict:
    """The same row with its images in it."""
    images = [{"bytes": (root / path).read_bytes(), "path": path} for path in row["images"]]
    return row | {"images": images}


def in_lines(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


FORMS = {
    "list": lambda rows, path, root: path.write_bytes(json.dumps(rows).encode()),
    "lines": lambda rows, path, root: path.write_bytes(in_lines(rows)),
    "gz": lambda rows, path, root: path.write_bytes(gzip.compress(in_lines(rows))),
    "messages": lambda rows, path, root: path.write_bytes(in_lines(map(as_messages, rows))),
    "share_gpt": lambda rows, path, root: path.write_bytes(in_lines(map(as_share_gpt, rows))),
    "parquet": lambda rows, path, root: pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([with_bytes(row, root) for row in rows]), path
    ),
    "arrow": lambda rows, path, root: datasets.Dataset.from_list(
        [with_bytes(row, root) for row in rows]
    ).save_to_disk(path),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_the_same_data(check_data, rows, scenes, tmp_path, form):
    path = tmp_path / "rows"
    FORMS[form](rows, path, scenes)
    root = tmp_path if form in ("parquet", "arrow") else scenes
    out, line = check_data(path, f"--config.data.image_root={root}")
    plain, _ = check_data(scenes / "sft.json")
    assert line == "" and out.startswith(f"{path}: {len(rows)} questions would be used, 0 left out")
    drop = re.compile(r"^\S+: |^ *(smallest|largest) .*$", re.MULTILINE)  # they have names
    assert drop.sub("", out) == drop.sub("", plain)


def test_one_image_in_image(check_data, scenes, tmp_path):
    row = {"image": "images/sft_00000_1.png", "question": "<image>Where is the red ring?"}
    path = tmp_path / "rows.jsonl"
    path.write_bytes(in_lines([row | {"targets": [{"image": 1, "box": [10, 20, 300, 400]}]}]))
    for kind in ("sft", "grpo"):
        out, line = check_data(path, kind=kind)
        assert line == "" and "rows.jsonl: 1 questions would be used, 0 left out" in out


@pytest.mark.parametrize("form", FORMS)
def test_a_broken_file_of_each_form_is_one_line(check_data, rows, scenes, tmp_path, form):
    path = tmp_path / "rows"
    FORMS[form](rows, path, scenes)
    file = next(path.glob("*.arrow")) if path.is_dir() else path
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    out, line = check_data(path, f"--output_dir={tmp_path}/out")
    assert out == "" and str(file) in line and "get or make it again" in line and "\n" not in line
    assert not (tmp_path / "out").exists()


# What is said -------------------------------------------------------------------------------------


def test_what_is_left_out_is_counted_listed_and_shown(check_data, rows, scenes, tmp_path):
    rows[3]["images"][0] = rows[8]["images"][0] = "images/none.png"
    rows[5]["conversations"][1]["value"] = "It is nowhere."
    path, output = tmp_path / "rows.json", tmp_path / "out"
    path.write_text(json.dumps(rows))
    out, line = check_data(path, f"--output_dir={output}")
    used = len(rows) - 3
    assert line == "" and f"rows.json: {used} questions would be used, 3 left out" in out
    assert re.search(r"2 like rows.json row 3: image '.*none.png': no such file; check", out)
    assert "1 like rows.json row 5: the answer holds no box" in out
    listed = [json.loads(line) for line in (output / "rejected.jsonl").open()]
    assert [each["source"] for each in listed] == [f"rows.json row {n}" for n in (5, 3, 8)]
    assert {each["file"] for each in listed} == {str(path)}
    (found,) = json.loads((output / "check.json").read_text()).values()
    assert sum(found["used"].values()) == used and sum(found["left_out"].values()) == 3
    assert [each["count"] for each in found["reasons"]] == [2, 1]
    (view,) = page_data(output / "report.html")["views"]
    titles = [card["title"] for card in view["cards"]]
    assert len(titles) == used + 2 and any("row 8" in title for title in titles)
    assert all(card["truth"] for card in view["cards"])
    # Run again, the list is begun anew.
    check_data(path, f"--output_dir={output}")
    assert len((output / "rejected.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_it_is_what_the_run_itself_would_use(recipe, scenes, check_data, tmp_path, kind):
    """Beside the pipeline's own function, with lengths that only some of the rows fit."""
    file = scenes / {"sft": "sft.jsonl", "grpo": "rl.json"}[kind]
    settings = read(recipe(kind))
    tokenizer = load_tokenizer(settings.source)
    kept = usable.read(settings, usable.refusal(settings)).kept
    prepare = settings.preparer(tokenizer, with_response=kind == "sft", image_root=scenes)
    lengths = sorted(len(prepare(example).encoded.tokens) for example in kept)
    limits = (lengths[3], lengths[len(lengths) // 2])
    shapes = dataclasses.replace(prepare.shapes, lengths=limits)
    prepare, fit = dataclasses.replace(prepare, shapes=shapes), []
    for example in kept:
        try:
            fit.append(len(prepare(example).encoded.tokens))
        except DataError as error:
            refused = str(error)
    over = len(kept) - len(fit)
    assert fit and over
    out, line = check_data(file, f"--config.data.shapes.lengths={limits}", kind=kind)
    assert line == "" and f": {len(fit)} questions would be used, {over} left out" in out
    small = sum(length <= limits[0] for length in fit)
    by_size = f"{small} up to {limits[0]}, {len(fit) - small} up to {limits[1]}, {over} over"
    assert by_size in out and refused.partition("are more")[2] in out
    told = "tokens with the answer" if kind == "sft" else "tokens of a prompt"
    median = int(np.quantile(lengths, 0.5, method="inverted_cdf"))
    assert re.search(rf"{told} +{median} .* {lengths[-1]}  ", out)


def test_images_sizes_and_orientations(check_data, tmp_path):
    Image.new("RGB", (300, 200)).save(tmp_path / "large.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    target = {"image": 1, "box": [1, 2, 300, 400]}
    row = {"images": ["large.jpg", "turned.jpg"], "question": "Where?", "targets": [target]}
    path = tmp_path / "rows.jsonl"
    path.write_bytes(in_lines([row] * 2))
    flags = [path, f"--config.data.image_root={tmp_path}", "--config.data.shapes.patches=(64,)"]
    out, line = check_data(*flags)
    assert line == ""
    assert re.search(r"shrunk to data.max_pixels=3136 +2\n", out)
    assert re.search(r"enlarged to data.min_pixels=3136 +2\n", out)
    assert re.search(r"EXIF orientation, read as stored .data.apply_exif. +1\n", out)
    assert re.search(r"smallest +40x20, turned.jpg\n *\S*largest +300x200, large.jpg", out)
    out, _ = check_data(*flags, "--config.data.apply_exif=True")
    assert re.search(r"EXIF orientation, turned upright +1\n", out) and "20x40, turned.jpg" in out


def test_nothing_that_can_be_used_is_status_2(check_data, rows, scenes, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row | {"images": ["none.png"] * 3} for row in rows]))
    out, line = check_data(path, scenes / "sft.json", f"--output_dir={tmp_path}/out")
    assert line.startswith(f"{path}: nothing in it can be used; the first: rows.json row ")
    assert "sft.json: 28 questions would be used, 0 left out" in out  # which is told before
    assert (tmp_path / "out/report.html").exists()
    targets = [{"image": 1, "box": [n, 1, n + 5, 9]} for n in range(9)]
    row = {"images": rows[0]["images"], "question": "Where?", "targets": targets}
    path.write_text(json.dumps([row]))
    out, line = check_data(path, kind="grpo")
    assert "nothing in it can be used; the first: rows.json row 0: 9 targets are more" in line


def test_held_out_rows_are_read_too(check_data, scenes, tmp_path):
    flags = [f"--config.evaluation.benchmark={scenes}/eval.json", "--config.evaluation.every=2"]
    flags += [f"--config.evaluation.image_root={scenes}", "--config.evaluation.limit=9"]
    out, line = check_data(scenes / "sft.json", *flags, f"--output_dir={tmp_path}")
    assert line == "" and f"{scenes}/eval.json: 9 questions would be used, 0 left out" in out
    assert len(json.loads((tmp_path / "check.json").read_text())) == 2
    _, line = check_data(scenes / "sft.json", *flags, f"--config.evaluation.image_root={tmp_path}")
    assert "eval.json: nothing in it can be used" in line


def test_without_files_the_recipes_are_read(check_data, scenes):
    out, line = check_data(f"--config.data.train_json={scenes}/sft.jsonl")
    assert line == "" and "sft.jsonl: 28 questions" in out
    assert "no data: give files, or set data.train_json" in check_data()[1]
    missing = check_data("none.json")[1]
    assert missing.startswith("none.json: cannot be read") and "check the path" in missing


def test_weights_are_not_needed(check_data, scenes, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    out, line = check_data(scenes / "sft.json", f"--config.model.path={tmp_path}/model")
    assert line == "" and "28 questions would be used" in out


# Signals and memory -------------------------------------------------------------------------------


def interrupted(flags, *arguments):
    config = f"--config={REPOSITORY}/configs/sft_tiny.py"
    with pytest.raises(SystemExit) as ended:
        with binary("check_data", config, *flags, *arguments) as module:
            module.main(cli._parse_flags(sys.argv))
    assert ended.value.code == 130


def test_what_was_read_before_a_signal_is_told(flags, scenes, tmp_path, monkeypatch, capsys):
    def few(examples, measure, threads):
        for number, found in enumerate(survey.measured(examples, measure, threads)):
            if number == 4:
                os.kill(os.getpid(), signal.SIGINT)
            yield found

    monkeypatch.setattr(check, "measured", few)
    interrupted(flags, scenes / "sft.json", scenes / "sft.jsonl", f"--output_dir={tmp_path}")
    out, err = capsys.readouterr()
    assert "SIGINT: reading no further; a second one ends at once" in err
    assert "sft.json: 5 questions would be used, 0 left out, 23 not read" in out
    assert "sft.jsonl: 0 questions would be used, 0 left out, 28 not read" in out
    assert (tmp_path / "report.html").exists()


def test_a_signal_while_rows_are_read_ends_it(flags, scenes, monkeypatch, capsys):
    def read(*_):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("went on")

    monkeypatch.setattr(check.usable, "read", read)
    interrupted(flags, scenes / "sft.json")
    assert "SIGINT: ending" in capsys.readouterr().err


def test_few_examples_are_read_ahead(scenes):
    examples, _ = read_examples(scenes / "sft.json")
    begun, lock = [], threading.Lock()

    def measure(example):
        with lock:
            begun.append(example)
        return Measured(example, "", 1, 1, (), ())

    for number, found in enumerate(survey.measured(examples, measure, 2), start=1):
        assert found.example is examples[number - 1]
        assert len(begun) <= number + 4
    assert len(begun) == len(examples)


@given(st.lists(st.integers(0, 50), min_size=1), st.floats(0.01, 1), st.sets(st.integers(0, 50)))
def test_quantiles_and_limits(numbers, share, limits):
    counts, limits = Counts(), sorted(limits)
    for number in numbers:
        counts.add(number)
    assert counts.quantile(share) == np.quantile(numbers, share, method="inverted_cdf")
    edges = itertools.pairwise([-np.inf, *limits, np.inf])
    assert counts.up_to(limits) == [sum(a < n <= b for n in numbers) for a, b in edges]


def test_reasons_that_quote_the_data_do_not_fill_memory():
    found = survey.Survey("a.json")
    for n in range(500):
        found.reject(Rejected(f"row {n}", "", "word " * n))
    assert len(found.reasons.to_json()) <= 101 and found.reasons.total == 500
