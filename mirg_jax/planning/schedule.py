"""Predicts how long a compiled TPU program takes, from its scheduled text, and where the time goes.

The core takes instructions in the order of the schedule. A synchronous collective holds it. An
asynchronous collective or copy begins at its start, behind what already uses the same links or copy
engine; its end waits for what is left of it. So each has a part that is hidden behind the core's
work, and a part that stands open.
"""

import collections
import dataclasses
import re
from typing import NamedTuple

from mirg_jax.planning import hlo
from mirg_jax.planning.costs import (
    AS_ESTIMATED,
    AT_THE_LIMITS,
    COLLECTIVES,
    PUBLISHED,
    Costs,
    Move,
    Scales,
    Work,
)
from mirg_jax.planning.hlo import Computation, Instruction
from mirg_jax.planning.machines import Machine
from mirg_jax.planning.places import CARRIERS, Places

_FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "partition-id", "replica-id",
    "after-all", "opt-barrier", "iota", "add-dependency",
}  # fmt: skip


class Trips(NamedTuple):
    """How often loops run whose text doesn't say: those of decoding.

    Attributes:
      steps: of a loop that holds no other such loop.
      refills: of a loop that does, in which a slot is filled anew.
      between: of the loop in it.
    """

    steps: float = 1
    refills: float = 1
    between: float = 1


@dataclasses.dataclass
class Place:
    """The time that is spent for a place in the source.

    Attributes:
      kind: `products`, `kernels`, `rest`, or a collective or copy that stands open.
      source: file, line and function, and the pass if it isn't the forward one.
      seconds: on the core, or open.
      flops: operations of matrix products.
      times: how often.
    """

    kind: str
    source: str
    seconds: float = 0.0
    flops: float = 0.0
    times: float = 0.0


@dataclasses.dataclass
class Moved:
    """Seconds that collectives of a kind, or copies, take.

    Attributes:
      hidden: while the core works.
      open: while it waits.
      bytes: what they move.
    """

    hidden: float = 0.0
    open: float = 0.0
    bytes: float = 0.0


@dataclasses.dataclass
class Account:
    """A program's time.

    Attributes:
      seconds: predicted.
      least: if each instruction took only what its operations and bytes need.
      most: if each took the compiler's estimate.
      core: seconds on the core by kind: `products`, `kernels`, `rest`.
      moved: collectives by their names, `copy` and `host copy`.
      flops: operations of matrix products and kernels.
      traffic: bytes of HBM read and written.
      decoding: seconds in loops whose number of trips was given.
      decoding_traffic: bytes of HBM read and written there.
      places: the dearest first.
      unknown: what the text didn't say.
    """

    seconds: float = 0.0
    least: float = 0.0
    most: float = 0.0
    core: dict[str, float] = dataclasses.field(default_factory=dict)
    moved: dict[str, Moved] = dataclasses.field(default_factory=dict)
    flops: float = 0.0
    traffic: float = 0.0
    decoding: float = 0.0
    decoding_traffic: float = 0.0
    places: list[Place] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)


def account(text: str, machine: Machine, trips: Trips | None = None) -> Account:
    """Predicts a program's time.

    Args:
      text: of the compiled program.
      machine: the TPU slice that it was compiled for.
      trips: how often loops run whose text doesn't say; by default once.

    Raises:
      ConfigError: if the text has no estimates.
    """
    costs = Costs(hlo.parse(text), machine)

    def play(scales: Scales) -> Account:
        player = _Player(dataclasses.replace(costs, scales=scales), trips)
        player.run(costs.module.entry, 1.0)
        return player.result()

    found = play(PUBLISHED)
    found.least, found.most = play(AT_THE_LIMITS).seconds, play(AS_ESTIMATED).seconds
    return found


class _Pending(NamedTuple):
    """A collective or copy that has begun."""

    move: Move
    place: Place
    end: float


class _Player:
    """Takes a program's instructions in order and keeps the time.

    Loops are played twice, the second time for all further trips.
    """

    def __init__(self, costs: Costs, trips: Trips | None):
        self._costs, self._module, self._trips = costs, costs.module, trips
        self._now = 0.0
        self._free: dict[str, float] = collections.defaultdict(float)  # when a queue is
        self._pending: dict[tuple[int, str], list[_Pending]] = {}
        self._places: dict[tuple[str, str], Place] = {}
        self._sources = Places(self._module)
        self._uncounted = 0  # loops around the present one whose trips aren't known
        self._account = Account()
        self._missing: dict[str, None] = {}

    def result(self) -> Account:
        """Returns the account of what was played."""
        found = self._account
        found.seconds = self._now
        for moved in found.moved.values():
            if moved.hidden < 1e-9 * moved.open:  # rounding
                moved.hidden = 0.0
        found.places = sorted(self._places.values(), key=lambda place: -place.seconds)
        found.unknown = list(self._missing)
        return found

    def run(self, name: str, weight: float) -> None:
        """Plays a computation that runs `weight` times."""
        computation = self._module.computations[name]
        for instruction in computation.values():
            self._take(computation, instruction, weight)

    # Instructions ---------------------------------------------------------------------------------

    def _take(self, computation: Computation, one: Instruction, weight: float) -> None:
        if one.op == "while":
            self._loop(one, weight)
        elif one.op == "call" and one.called:
            self.run(one.called, weight)
        elif one.op == "conditional":
            self.run(self._dearest_branch(one), weight)
        elif not self._pass_on(computation, one, weight) and one.op not in _FREE:
            self._compute(computation, one, weight)

    def _pass_on(self, computation: Computation, one: Instruction, weight: float) -> bool:
        """Waits if this is the end of something asynchronous; returns whether it is.

        What only hands its operands on hands on what is pending in them.
        """
        at = id(computation)
        pending = [p for name in one.operands for p in self._pending.get((at, name), ())]
        if one.op.endswith("-done") or "AsyncCollectiveDone" in self._targets(one):
            if not pending:
                self._missing["the start of an asynchronous operation"] = None
            for begun in pending:
                self._wait(begun, weight)
            return True
        fused = one.called.startswith("async_collective_fusion")  # computes meanwhile
        if pending and (one.op in CARRIERS or fused):
            self._pending[at, one.name] = pending
        return False

    def _compute(self, computation: Computation, one: Instruction, weight: float) -> None:
        starts = one.op.endswith("-start") or "AsyncCollectiveStart" in self._targets(one)
        if collective := self._collective_in(one, starts):
            move = self._costs.collective(collective, scattered=self._is_scattered(one, collective))
            begun = self._begin(move, self._sources.of(computation, collective, one), weight)
            if starts:
                self._pending[id(computation), one.name] = [begun]
            else:
                self._wait(begun, weight)
        elif starts:
            move = self._costs.copy(one)
            self._account.traffic += move.bytes * weight
            begun = self._begin(move, self._sources.of(computation, one), weight)
            self._pending[id(computation), one.name] = [begun]
        elif work := self._costs.work(computation, one):
            self._account.traffic += work.bytes * weight
            self._work(computation, one, work, weight)

    def _work(self, computation: Computation, one: Instruction, work: Work, weight: float) -> None:
        if work.kind == "kernels" and not work.flops:
            self._missing[f"the operations of {re.sub(r'[.0-9]+$', '', one.name)}"] = None
        self._now += work.seconds
        found = self._account
        found.core[work.kind] = found.core.get(work.kind, 0.0) + work.seconds * weight
        found.flops += work.flops * weight
        place = self._place(work.kind, self._sources.of(computation, one))
        place.seconds += work.seconds * weight
        place.flops += work.flops * weight
        place.times += weight

    # Collectives and copies -----------------------------------------------------------------------

    def _begin(self, move: Move, source: str, weight: float) -> _Pending:
        queues = set(move.queues)
        if self._costs.uses_all_links(move):
            queues |= {queue for queue in self._free if queue.startswith("links")}
        end = max([self._now, *(self._free[queue] for queue in queues)]) + move.seconds
        self._free.update(dict.fromkeys(queues, end))
        moved = self._account.moved.setdefault(move.kind, Moved())
        moved.bytes += move.bytes * weight
        moved.hidden += move.seconds * weight
        place = self._place(move.kind, source)
        place.times += weight
        return _Pending(move, place, end)

    def _wait(self, begun: _Pending, weight: float) -> None:
        if begun.end <= self._now:
            return
        waited = (begun.end - self._now) * weight
        moved = self._account.moved[begun.move.kind]
        moved.open += waited
        moved.hidden = max(moved.hidden - waited, 0.0)
        begun.place.seconds += waited
        self._now = begun.end

    def _targets(self, one: Instruction) -> set[str]:
        if one.op not in ("fusion", "async-start"):
            return set()
        return {inner.target for inner in self._module.inside(one).values()} - {""}

    def _collective_in(self, one: Instruction, starts: bool) -> Instruction | None:
        """Returns the collective that an instruction is, or that it was fused around."""
        if one.op.startswith(COLLECTIVES):
            return one
        if one.op not in ("fusion", "async-start") or (one.cycles and not starts):
            return None
        inside = self._module.inside(one).values()
        return next((i for i in inside if i.op.startswith(COLLECTIVES)), None)

    def _is_scattered(self, one: Instruction, collective: Instruction) -> bool:
        """Returns whether an all-reduce is fused with the choice of a part of its result."""
        if one is collective:
            return False
        inside = self._module.inside(one).values()
        return "scatter" in one.name or any(inner.op == "dynamic-slice" for inner in inside)

    # Loops and branches ---------------------------------------------------------------------------

    def _loop(self, one: Instruction, weight: float) -> None:
        body = one.find(r"body=%([\w.\-]+)")
        trips = hlo.trips(self._module, one)
        given = trips is None
        if trips is None:
            trips = self._given_trips(one)
        if not trips:
            return
        outermost = given and self._uncounted == 0
        began, traffic = self._now, self._account.traffic
        self._uncounted += given
        self.run(body, weight)
        if trips > 1:
            before = self._now
            self.run(body, weight * (trips - 1))
            skipped = (self._now - before) * (trips - 2)
            self._now += skipped
            for queue in self._free:
                self._free[queue] += skipped
        self._uncounted -= given
        if outermost:
            self._account.decoding += (self._now - began) * weight
            self._account.decoding_traffic += self._account.traffic - traffic

    def _given_trips(self, loop: Instruction) -> float:
        if self._trips is None:
            self._missing[f"how often {loop.name} runs, counted once"] = None
            return 1
        if self._uncounted:
            return self._trips.between
        return self._trips.refills if self._holds_uncounted(loop) else self._trips.steps

    def _holds_uncounted(self, loop: Instruction) -> bool:
        inside = [one for one in self._module.body(loop).values() if one.op == "while"]
        return any(
            hlo.trips(self._module, one) is None or self._holds_uncounted(one) for one in inside
        )

    def _dearest_branch(self, one: Instruction) -> str:
        listed = one.find(r"branch_computations=\{([^}]*)\}")
        names = re.findall(r"%([\w.\-]+)", listed)
        names = names or re.findall(r"(?:true|false)_computation=%([\w.\-]+)", one.text)
        return max(names, key=self._cycles)

    def _cycles(self, name: str) -> int:
        """Returns the compiler's estimates of a computation, loops counted once."""
        total = 0
        for one in self._module.computations[name].values():
            total += one.cycles or 0
            if one.op == "while":
                total += self._cycles(one.find(r"body=%([\w.\-]+)"))
        return total

    # Places ---------------------------------------------------------------------------------------

    def _place(self, kind: str, source: str) -> Place:
        return self._places.setdefault((kind, source), Place(kind, source))
