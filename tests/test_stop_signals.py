"""A signal to stop: what is done about it, and the line that says so."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mirg_jax.files.streams import progress_bar
from mirg_jax.sharding import processes
from mirg_jax.sharding.processes import Signals

LINE = "SIGTERM: saving; a second one ends at once"


@pytest.fixture
def send():
    """Sends SIGTERM from another thread while this one is at work where it can't act on it."""

    def send_while_busy():
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 5_000_000)  # seconds, without the interpreter

    return send_while_busy


@pytest.mark.parametrize("first", [True, False])
def test_a_signal_is_told_at_once_and_by_the_first_process_only(first, send, monkeypatch):
    told = []
    monkeypatch.setattr(processes, "is_first", lambda: first)
    monkeypatch.setattr(processes, "say", lambda line: told.append((line, time.monotonic())))
    before = signal.getsignal(signal.SIGTERM)
    with Signals("saving") as signals:
        send()
        end = time.monotonic()
        assert signals.received == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is before  # a second one ends the process
    assert [line for line, _ in told] == [LINE] * first
    assert all(when < end for _, when in told)
    with signals:  # once is enough
        assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_lost_terminal_is_a_signal_to_stop_unless_it_is_ignored(handler, capsys):
    before = signal.signal(signal.SIGHUP, handler)
    try:
        with Signals("saving") as signals:
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)
    stops = handler is signal.SIG_DFL
    assert signals.received == (signal.SIGHUP if stops else 0)
    assert ("SIGHUP: saving; a second one ends" in capsys.readouterr().err) == stops


def test_the_line_stands_above_the_progress_bar(capsys):
    with progress_bar(total=3, desc="steps") as bar, Signals("saving"):
        bar.update()
        os.kill(os.getpid(), signal.SIGTERM)
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert LINE in [line.strip() for line in lines]


def test_a_signal_may_end_the_process_in_order(send, capsys):
    left = []
    with pytest.raises(SystemExit) as ended, contextlib.ExitStack() as stack:
        stack.callback(left.append, True)
        stack.enter_context(Signals("ending", leave=True))
        send()
    assert ended.value.code == 143 and left
    assert "SIGTERM: ending; a second one ends at once" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("in_turns", [True, False])
def test_a_signal_that_comes_while_memory_is_freed_is_not_lost(in_turns):
    """Python swallows what is raised there."""
    went_on = []

    class Freed:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as left, Signals("ending", leave=True) as signals:
        signals.leave_if_received()
        Freed()
        if in_turns:
            signals.leave_if_received()
        went_on.append(True)
    assert bool(went_on) != in_turns
    assert left.value.code == 128 + signal.SIGTERM


def test_a_second_signal_ends_a_process_that_cannot_act_on_it():
    code = """
import hashlib, os, signal, threading
from mirg_jax.sharding.processes import Signals

with Signals("saving"):
    for seconds in (0.2, 1.7):
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM)).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 400_000_000)  # minutes, without the interpreter
"""
    run = [sys.executable, "-c", code]
    ended = subprocess.run(run, capture_output=True, text=True, timeout=100)
    lines = [line.strip() for line in ended.stderr.splitlines() if "SIGTERM" in line]
    assert lines == [LINE, "ended by a second SIGTERM"]
    assert ended.returncode == 128 + signal.SIGTERM
