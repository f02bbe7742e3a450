"""Locks: who holds one, and when it is nobody's."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY

from mirg_jax.errors import ConfigError
from mirg_jax.files import locks
from mirg_jax.files.locks import Holder, Lock

HOLD = """
import pathlib, sys, time
from mirg_jax.files.locks import Lock
Lock(pathlib.Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def held():
    """Has another process hold a lock."""
    processes = []

    def hold(path):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in processes:
        process.kill()
        process.wait()


def test_a_lock_names_its_holder_and_dies_with_it(held, tmp_path):
    path = tmp_path / "new" / "run.lock"
    process = held(path)
    said = rf"new: another process writes to it \({process.pid} on .*, since 20"
    with pytest.raises(ConfigError, match=said):
        Lock(path).acquire()
    process.kill()
    deadline = time.monotonic() + 30
    while locks._started(process.pid):  # killed, but not yet waited for: it counts as ended
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with Lock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        with pytest.raises(ConfigError, match=f"another process writes to it .{os.getpid()} on"):
            Lock(path).acquire()
    assert os.listdir(path.parent) == []


def test_a_process_id_that_is_used_again_is_another_process(tmp_path):
    path = tmp_path / "run.lock"
    before = dataclasses.replace(Holder.this(), started="1")
    path.write_text(json.dumps(dataclasses.asdict(before)))
    with Lock(path):
        assert json.loads(path.read_text())["started"] == locks._started(os.getpid())


@pytest.mark.parametrize("content", ["elsewhere", "", '{"pid": 1'])
def test_a_holder_on_another_machine_counts_as_dead_when_it_is_silent(
    content, tmp_path, monkeypatch, capsys
):
    path, monkeypatch = tmp_path / "run.lock", monkeypatch
    elsewhere = dataclasses.replace(Holder.this(), host="other", machine="other", pid=7)
    text = json.dumps(dataclasses.asdict(elsewhere)) if content == "elsewhere" else content
    path.write_text(text)
    looks = []

    def look(_):
        looks.append(path.stat().st_mtime)
        if len(looks) == 3:
            os.utime(path, (0, looks[-1] + 10))  # a sign of life
        assert len(looks) < 5

    monkeypatch.setattr(locks.time, "sleep", look)
    who = r" \(7 on other, since 20.*" if content == "elsewhere" else ";"
    with pytest.raises(ConfigError, match=f"another process writes to it{who}"):
        Lock(path).acquire()
    assert len(looks) == 3 and path.read_text() == text
    assert capsys.readouterr().err.count("waiting for a sign of its life") == 1

    os.utime(path, (0, time.time() - locks._SILENCE - 1))
    with Lock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert len(looks) == 3 and os.listdir(tmp_path) == []


def test_the_holder_shows_that_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_BEAT", 0.01)
    path = tmp_path / "run.lock"
    with Lock(path):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 30
        while path.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_lock_that_was_taken_over_is_not_removed_by_its_first_holder(tmp_path):
    path = tmp_path / "run.lock"
    first = Lock(path)
    first.acquire()
    path.unlink()
    with Lock(path):
        first.release()
        assert path.exists()


def test_a_folder_that_takes_no_lock_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run.lock: cannot be written") as refused:
        Lock(tmp_path / "file" / "run.lock").acquire()
    assert not re.search(r"\n", str(refused.value))


def test_a_folder_in_a_locks_place_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(locks.time, "sleep", lambda _: pytest.fail("waits"))
    (tmp_path / "run.lock").mkdir()
    with pytest.raises(ConfigError, match=r"run.lock: cannot be written \(Is a directory\)"):
        Lock(tmp_path / "run.lock").acquire()


def test_a_file_from_the_future_is_a_holder_that_is_silent(tmp_path, monkeypatch):
    """As a machine with a wrong clock leaves it."""
    path, clock = tmp_path / "run.lock", iter(range(0, 10_000, 30))
    path.write_text("")
    os.utime(path, (0, time.time() + 10**7))
    monkeypatch.setattr(locks.time, "sleep", lambda _: None)
    monkeypatch.setattr(locks.time, "monotonic", lambda: next(clock))
    with Lock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_patient_process_waits_for_the_holders_end(tmp_path, monkeypatch, capsys):
    path, looks = tmp_path / "new" / "run.lock", []
    held = Lock(path)
    held.acquire()

    def look(_):
        looks.append(None)
        if len(looks) == 2:
            held.release()  # with the folder, which it has made
            assert not path.parent.exists()

    monkeypatch.setattr(locks.time, "sleep", look)
    with Lock(path, patience=60.0):
        assert json.loads(path.read_text())["pid"] == os.getpid() and len(looks) == 2
    err = capsys.readouterr().err
    assert err.count(f"is held by process {os.getpid()} on ") == err.count("waiting for its") == 1
