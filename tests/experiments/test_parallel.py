"""Rows of a table in several processes: their order, how many at once, failures and signals."""

import json
import os
import signal
import sys
import threading
import time

import pytest
from conftest import call

from configs import studies
from mirg_jax.errors import UserError
from mirg_jax.experiments import parallel, rows

# Stands for scripts/table.py: notes when it begins and ends.
ROW = """
import os, pathlib, signal, sys, time
given = dict(each[2:].split("=") for each in sys.argv[2:])
name, log = given["seeds"] + " " + given["row"], pathlib.Path(sys.argv[1])
def note(text):
    with log.open("a") as out:
        out.write(f"{text} {name}\\n")
def stop(*_):
    note("stopped")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
note("begins")
print("working")
if given["row"] == os.environ.get("FAILS"):
    sys.exit("error: no room")
time.sleep(float(os.environ.get("SECONDS", 0.3)))
note("ends")
"""


@pytest.fixture
def table():
    config = studies.get_config("image")
    return rows.read(config)


@pytest.fixture
def run(table, tmp_path):
    """Runs the table with rows that only note what they do; returns their notes."""
    script, log = tmp_path / "row.py", tmp_path / "notes"
    script.write_text(ROW)
    log.touch()

    def run(jobs, seeds=(1, 2)):
        parallel.run(table, tmp_path, seeds, [sys.executable, str(script), str(log)], jobs)

    run.notes = lambda: [tuple(line.split()) for line in log.read_text().splitlines()]
    return run


def test_rows_wait_for_what_they_start_from(run, table):
    run(jobs=3)
    notes = run.notes()
    assert len(notes) == 2 * 2 * len(table.rows)
    under_way = most = 0
    for what, *_ in notes:
        under_way += 1 if what == "begins" else -1
        most = max(most, under_way)
    assert most == 3
    for seed in ("1", "2"):
        for row in table.rows[1:]:
            begins = notes.index(("begins", seed, row.name))
            assert notes.index(("ends", seed, "base")) < begins
            if row.start:
                assert notes.index(("ends", seed, row.start)) < begins


def test_after_a_failed_row_no_other_is_begun(run, monkeypatch, tmp_path):
    monkeypatch.setenv("FAILS", "sft_100")
    with pytest.raises(UserError, match="SFT on 100, seed 1: error: no room .all of it is in"):
        run(jobs=2, seeds=(1,))
    assert run.notes() == [
        ("begins", "1", "base"),
        ("ends", "1", "base"),
        ("begins", "1", "sft_100"),
    ]
    assert "working" in (tmp_path / "seed_1/sft_100.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_rows_under_way(run, number, monkeypatch):
    monkeypatch.setenv("SECONDS", "60")

    def stop():
        while len(run.notes()) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop).start()
    with pytest.raises((SystemExit, KeyboardInterrupt)) as ended:
        run(jobs=4)
    code = ended.value.code if ended.type is SystemExit else None
    assert code == {signal.SIGTERM: 143, signal.SIGINT: None}[number]
    assert sorted(run.notes()) == [
        (what, seed, "base") for what in ("begins", "stopped") for seed in ("1", "2")
    ]


@pytest.mark.slow
def test_a_table_in_several_processes_equals_one(tmp_path):
    sizes = {"scenes.sft": 70, "scenes.rl": 21, "scenes.evaluation": 21}
    steps = {"recipes.sft.num_steps": 2, "recipes.grpo.num_steps": 1}
    flags = [
        "--config=configs/table_3.py:tiny",
        "--config.order=('base', 'grounded', 'grounded_rl', 'grounded_rl_no_image')",
        "--seeds=1,2",
        *(f"--config.{name}={value}" for name, value in (sizes | steps).items()),
    ]
    tables = []
    for jobs in (1, 2):
        workdir = tmp_path / str(jobs)
        result = call("table", *flags, f"--workdir={workdir}", f"--jobs={jobs}", timeout=1200)
        assert result.returncode == 0, result.stderr[-2000:]
        tables.append(json.loads((workdir / "table.json").read_text()))
    assert tables[0] == tables[1]
    assert {name: list(row["seeds"]) for name, row in tables[0]["rows"].items()} == {
        name: ["1", "2"] for name in ("base", "grounded", "grounded_rl", "grounded_rl_no_image")
    }
