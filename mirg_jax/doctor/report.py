"""The lines that checks end in: what each found, in every process, within a bounded time."""

import collections
import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mirg_jax.errors import UserError, shorten
from mirg_jax.files.streams import say
from mirg_jax.sharding import processes

OK, WARNING, PROBLEM = "ok", "warning", "problem"
_MOST_CHARACTERS = 1000  # of a line


class Line(NamedTuple):
    """A line of the report."""

    level: str  # OK, WARNING or PROBLEM
    name: str  # of the check
    text: str

    def __str__(self) -> str:
        text = shorten(" ".join(self.text.split()), _MOST_CHARACTERS)
        return f"{self.level:8s} {self.name}: {text}"


class Check:
    """What one check finds in this process.

    Attributes:
      findings: level and text of each line.
      facts: what must be the same in all processes, by name, and the remedy if it isn't.
    """

    def __init__(self):
        self.findings: list[tuple[str, str]] = []
        self.facts: dict[str, tuple[str, str]] = {}

    def ok(self, text: str) -> None:
        """Adds what is as it should be."""
        self.findings.append((OK, text))

    def warning(self, text: str) -> None:
        """Adds what the run can live with; the text says what to do."""
        self.findings.append((WARNING, text))

    def problem(self, text: str) -> None:
        """Adds what would stop the run; the text says what to do."""
        self.findings.append((PROBLEM, text))

    def same(self, what: str, value: str, remedy: str) -> None:
        """Adds a fact that is a problem if it is another in another process."""
        self.facts[what] = value, remedy


class Report:
    """Runs checks and prints their lines.

    Until the processes have met, what they find is kept; then the first prints it for all. A check
    that doesn't end in time ends the program, since it would wait for ever: for another process, a
    file system or a device.
    """

    def __init__(self, patience: float):
        """Begins a report on stdout.

        Args:
          patience: seconds that a check may take.
        """
        self._patience, self._out, self._met = patience, sys.stdout, False
        self._kept: list[tuple[str, Check]] = []
        self._counts: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def check(self, name: str, *, late: str = "", patience: float | None = None) -> Iterator[Check]:
        """Runs a check; whatever is raised in the `with` block is a problem that it found.

        Args:
          name: the check's name.
          late: what is wrong if the check doesn't end in time, and what to do.
          patience: seconds that it may take if it is more than the report's.
        """
        check, seconds = Check(), max(patience or 0.0, self._patience)
        late = late or "a file system, a device or another process hangs; look at the other hosts"
        late = f"no end after {seconds:g} s on {socket.gethostname()}: {late}"
        timer = threading.Timer(seconds, self._give_up, [Line(PROBLEM, name, late)])
        timer.daemon = True
        timer.start()
        try:
            try:
                yield check
            except Exception as error:  # any of them would stop the run too
                check.problem(_reason(error))
            self._kept.append((name, check))
            try:
                self._tell()
            except Exception as error:  # the others can't be asked any more
                ended = f"another process has ended ({_reason(error)}); look at its output"
                self._give_up(Line(PROBLEM, name, ended))
        finally:
            timer.cancel()

    def meet(self) -> None:
        """Says that the processes have met, so that findings can be exchanged."""
        self._met = True

    def skip(self, name: str, why: str) -> None:
        """Prints that a check was left out."""
        line = Line(WARNING, name, f"not looked at, since {why}")
        self._print(line, not self._met or processes.is_first())

    def close(self) -> bool:
        """Prints what is left and the sum of it all.

        Returns:
          Whether there is a problem that would stop the run.
        """
        self._print_kept()
        problems, warnings = self._counts[PROBLEM], self._counts[WARNING]
        if not self._met or processes.is_first():
            verdict = "the run would stop" if problems else "ready to run"
            say(f"problems: {problems}, warnings: {warnings}; {verdict}", self._out)
        return problems > 0

    def _tell(self) -> None:
        """Prints, in the first process, what all processes found, if they have met."""
        if not self._met:
            return
        mine = [[name, check.findings, check.facts] for name, check in self._kept]
        everyone = processes.gather({"host": socket.gethostname(), "checks": mine})
        self._kept = []
        hosts = [each["host"] for each in everyone]
        for number, (name, _, _) in enumerate(mine):
            found = [each["checks"][number] for each in everyone]
            for line in _merged(name, hosts, [check[1] for check in found]):
                self._print(line, processes.is_first())
            for line in _contradictions(name, hosts, [check[2] for check in found]):
                self._print(line, processes.is_first())

    def _print(self, line: Line, shown: bool = True) -> None:
        self._counts[line.level] += 1
        if shown:
            say(str(line), self._out)

    def _print_kept(self) -> None:
        """Prints what this process alone has found."""
        kept, self._kept = self._kept, []
        for name, check in kept:
            for level, text in check.findings:
                self._print(Line(level, name, text))

    def _give_up(self, line: Line) -> None:
        self._print_kept()
        self._print(line)
        _end()


def _end() -> None:
    """Ends the program though a thread of it hangs."""
    os._exit(2)


def _reason(error: Exception) -> str:
    """Returns what an exception says, with its type unless it is written for users."""
    if isinstance(error, UserError):
        return str(error)
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _merged(
    name: str, hosts: Sequence[str], findings: Sequence[Sequence[tuple[str, str]]]
) -> Iterator[Line]:
    """Yields each text once, with the processes that it is of unless it is of all.

    Of texts that are all well, and differ by a figure, that of the first process stands for all.
    """
    who: dict[tuple[str, str], list[int]] = {}
    for index, found in enumerate(findings):
        for level, text in found:
            who.setdefault((level, text), []).append(index)
    for (level, text), which in who.items():
        if level == OK:
            if which[0] == 0:
                yield Line(level, name, text)
        else:
            where = "" if len(which) == len(hosts) else f"{_named(which, hosts)}: "
            yield Line(level, name, where + text)


def _contradictions(
    name: str, hosts: Sequence[str], facts: Sequence[Mapping[str, Any]]
) -> Iterator[Line]:
    """Yields a problem for each fact that is not the same in all processes that have it."""
    for what in dict.fromkeys(what for each in facts for what in each):
        who: dict[str, list[int]] = {}
        for index, each in enumerate(facts):
            if what in each:
                value, remedy = each[what]
                who.setdefault(value, []).append(index)
        if len(who) > 1:
            values = "; ".join(f"{value} in {_named(i, hosts)}" for value, i in who.items())
            yield Line(PROBLEM, name, f"{what} differ: {values}; {remedy}")


def _named(which: Sequence[int], hosts: Sequence[str]) -> str:
    listed = ", ".join(f"{index} ({hosts[index]})" for index in which[:4])
    more = f" and {len(which) - 4} more" if len(which) > 4 else ""
    return f"process{'es' if len(which) > 1 else ''} {listed}{more}"
