"""Lines and progress bars on one stream."""

import re
import sys
import time

from mirg_jax.files.streams import Steady, end_progress_bars, progress_bar, restart_clock, say
from mirg_jax.runs import metrics


def shown(text: str) -> list[str]:
    """The lines that a terminal shows in the end; what follows a return overwrites its line."""
    screen = []
    for line in text.split("\n"):
        cells = ""
        for part in line.split("\r"):
            cells = part + cells[len(part) :]
        screen.append(cells.rstrip())
    return screen


def test_lines_are_above_the_bar_and_the_last_one_behind_it(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Steady(sys.stderr))  # as in binaries
    bar = progress_bar(total=2, desc="steps", mininterval=0)
    bar.update()
    say("a warning")
    bar.update()
    end_progress_bars()
    print("the end", file=sys.stderr)
    first, second, third, rest = shown(capsys.readouterr().err)
    assert first == "a warning" and third == "the end" and not rest
    assert re.match(r"steps: 100%.* 2/2 ", second)


def test_a_line_without_a_bar_is_as_it_is(capsys):
    say("one")
    say("two", sys.stdout)
    found = capsys.readouterr()
    assert (found.err, found.out) == ("one\n", "two\n")


def test_the_first_step_does_not_count_in_the_time_that_remains(capsys):
    bar = progress_bar(total=101, initial=0, unit="step", mininterval=0)
    bar.start_t = bar.last_print_t = time.time() - 1000  # as long as it took to compile
    restart_clock(bar)
    assert " 1/101 " in capsys.readouterr().err
    bar.start_t = bar.last_print_t = time.time() - 2
    bar.update()
    told = bar.format_dict
    assert told["n"] == 2 and 1 < told["elapsed"] < 20 and 0.1 < told["rate"] < 1
    bar.close()


def test_a_runs_bar_counts_the_time_of_all_steps_but_the_first(tmp_path):
    written = metrics.Metrics(tmp_path, step=4, num_steps=7, name="sft")
    written.open()
    for step in (5, 6, 7):
        written.write(step, {"loss": 1.0}, ())
    assert (written._bar.n, written._bar.initial) == (7, 5)
    written.close()
