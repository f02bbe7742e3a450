"""How long an instruction of a TPU program takes on a chip.

The compiler's `estimated_cycles` are scaled by what published single operations took beside their
estimates, and are never less than what operations and bytes need. What has no estimate is computed:
kernels from their operations, collectives from bytes over links, copies from bytes over HBM.
"""

import dataclasses
import functools
import math
import re
from typing import NamedTuple

from mirg_jax.planning import hlo
from mirg_jax.planning.hlo import Computation, Instruction, Module
from mirg_jax.planning.machines import Machine
from mirg_jax.planning.traffic import touched

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
    "ragged-all-to-all",
)  # fmt: skip
_HOP = 1e-6  # seconds of latency per hop between chips
_STREAM = 0.83  # of HBM's bandwidth, in a published copy on v6e
_BEST = 0.93  # of the matrix unit's peak, in the best published products


class Scales(NamedTuple):
    """Time over the compiler's estimate, of matrix products and of everything else."""

    products: float
    rest: float


# On v6e, a product of two 8192 × 8192 bf16 matrices took 0.90 of its estimate, a copy 0.49.
PUBLISHED = Scales(0.9, 0.5)
AS_ESTIMATED = Scales(1.0, 1.0)
AT_THE_LIMITS = Scales(0.0, 0.0)  # only what operations and bytes need


class Work(NamedTuple):
    """What an instruction does on the core.

    Attributes:
      kind: `products`, `kernels` or `rest`.
      seconds: its time.
      flops: operations of its matrix products.
      bytes: of HBM that it reads and writes.
    """

    kind: str
    seconds: float
    flops: float
    bytes: float


class Move(NamedTuple):
    """A collective, or a copy between memories.

    Attributes:
      kind: the collective's name, `copy` or `host copy`.
      bytes: of the whole array.
      seconds: its time, if nothing else uses the same links or engine.
      queues: what it uses, one after another with others.
    """

    kind: str
    bytes: float
    seconds: float
    queues: tuple[str, ...]


class Group(NamedTuple):
    """How the chips of a collective are linked, taken as a line or a rectangle of the slice."""

    links: int  # into the chip that has the fewest
    hops: float  # from one end to the other
    middle: float  # links that cross its middle


@dataclasses.dataclass(frozen=True)
class Costs:
    """The times of a program's instructions on a machine.

    Attributes:
      module: the program.
      machine: the machine, a TPU slice.
      scales: of the compiler's estimates.
    """

    module: Module
    machine: Machine
    scales: Scales = PUBLISHED
    _known: dict[int, tuple[float, float]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def _masks(self) -> "Masks":
        """What the program's forward kernels compute of their masks."""
        return masks(self.module)

    # On the core ----------------------------------------------------------------------------------

    def work(self, computation: Computation, instruction: Instruction) -> Work | None:
        """Returns what an instruction does on the core; None if nothing."""
        if instruction.op == "custom-call" and instruction.target != "tpu_custom_call":
            return None
        bytes, flops = self._needs(computation, instruction)
        speeds, peak = self.machine.speeds, self.machine.kind.flops
        if instruction.op == "custom-call":
            seconds = max(flops / (peak * speeds.kernel), bytes / speeds.hbm)
            return Work("kernels", seconds, flops, bytes)
        streamed = bytes / (speeds.hbm * _STREAM)
        if instruction.cycles is None:
            return Work("rest", streamed, 0.0, bytes) if bytes else None
        scale = self.scales.products if flops else self.scales.rest
        seconds = scale * instruction.cycles / speeds.clock
        if scale < 1:
            seconds = max(seconds, streamed, flops / (peak * _BEST))
        return Work("products" if flops else "rest", seconds, flops, bytes)

    def _needs(self, computation: Computation, instruction: Instruction) -> tuple[float, float]:
        """Returns an instruction's bytes of HBM and operations, which are computed once."""
        at = id(instruction)
        if at not in self._known:
            if instruction.op == "custom-call":
                flops = kernel_flops(computation, instruction, self._masks) or 0.0
            else:
                flops = hlo.flops(self.module, self.module.inside(instruction))
            bytes = touched(self.module, computation, instruction)
            self._known[at] = bytes, flops
        return self._known[at]

    # Copies ---------------------------------------------------------------------------------------

    def copy(self, instruction: Instruction) -> Move:
        """Returns an asynchronous copy; the smallest array of its shape is what moves."""
        parts = [a for a in instruction.arrays if a.space not in hlo.SEMAPHORES]
        size = min((array.bytes for array in parts), default=0.0)
        speeds = self.machine.speeds
        if any(array.space == hlo.HOST for array in parts):
            way = "from the host" if parts[0].space == hlo.HOST else "to the host"
            return Move("host copy", size, size / speeds.host, (way,))
        return Move("copy", size, size / (speeds.hbm * _STREAM) + _HOP / 2, ("dma",))

    # Collectives ----------------------------------------------------------------------------------

    def collective(self, instruction: Instruction, *, scattered: bool = False) -> Move:
        """Returns a collective.

        Args:
          instruction: the collective.
          scattered: whether only a part of its result is used, as in a reduce-scatter.
        """
        kind = next(name for name in COLLECTIVES if instruction.op.startswith(name))
        arrays = [a for a in instruction.arrays if a.space not in hlo.SEMAPHORES]
        size = sum(array.bytes for array in arrays)
        if kind == "collective-permute":
            return self._permute(instruction, size)
        count = self._members(instruction)
        if count == 1:
            return Move(kind, 0.0, 0.0, ())
        if kind == "all-gather" and instruction.op.endswith("-start"):
            size *= count / (count + 1)  # its shape has the operand too
        if kind == "reduce-scatter":
            size *= count
        if kind == "all-reduce" and scattered:
            kind = "reduce-scatter"
        group = self.group(count)
        speed = self.machine.speeds.link
        seconds = size * (count - 1) / count / (group.links * speed)
        if "all-to-all" in kind:
            seconds = max(seconds, size * count / 4 / (group.middle * speed))
        passes = 2 if kind == "all-reduce" else 1
        seconds = max(passes * seconds, passes * _HOP * group.hops)
        return Move(kind, size, seconds, self._links(count))

    def _permute(self, instruction: Instruction, size: float) -> Move:
        """Data goes to the next chip of a ring, over one link in one direction."""
        if instruction.op.endswith("-start"):
            size /= 2  # its shape has operand and result
        listed = instruction.find(r"source_target_pairs=\{(.*?)\}\}")
        to = {int(a): int(b) for a, b in re.findall(r"(\d+),(\d+)", listed)}
        first = next(iter(to))
        ring, at = 1, to[first]
        while at in to and at != first and ring < len(to):
            at, ring = to[at], ring + 1
        before = next((source for source, target in to.items() if target == first), first)
        way = "down" if to[first] > before else "up"
        seconds = max(size / self.machine.speeds.link, _HOP)
        return Move("collective-permute", size, seconds, (f"links of {ring} {way}",))

    def _links(self, count: int) -> tuple[str, ...]:
        return f"links of {count} up", f"links of {count} down"

    def uses_all_links(self, move: Move) -> bool:
        """Returns whether a collective of all chips uses every link that any other may use."""
        return move.queues == self._links(math.prod(self.machine.sizes))

    def _members(self, instruction: Instruction) -> int:
        """Returns the number of chips in each group of a collective."""
        named = re.search(
            r"replica_groups=mesh\[([^\]]*)\]\s*(?:,?\s*device_ids=\S+\s*)?\{([^}]*)\}",
            instruction.text,
        )
        if named:
            sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
            return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
        if size := instruction.find(r"replica_groups=\[\d+,(\d+)\]"):
            return int(size)
        if listed := instruction.find(r"replica_groups=\{\{([\d,]*)\}"):
            return len(listed.split(","))
        return math.prod(self.machine.sizes)

    def group(self, count: int) -> Group:
        """Returns how `count` chips are linked: all, a dimension, a plane, or else a line."""
        sizes = self.machine.sizes
        planes = ([a, b] for a in sizes for b in sizes if a * b == count)
        chosen = [count]
        if count == math.prod(sizes):
            chosen = sizes
        elif count not in sizes:
            chosen = next(planes, [count])
        ways = [2 if size >= self.machine.speeds.ring else 1 for size in chosen]
        links = sum(way for size, way in zip(chosen, ways, strict=True) if size > 1)
        hops = sum((size - 1) / way for size, way in zip(chosen, ways, strict=True))
        across = [count / size * way for size, way in zip(chosen, ways, strict=True) if size > 1]
        return Group(max(links, 1), hops, min(across, default=1))


# Of splash attention's forward kernels, by the blocks of their masks: the fraction of the pairs of
# queries and keys that they compute.
Masks = dict[tuple[int, int, int, int], float]


def masks(module: Module) -> Masks:
    """Returns what the program's forward kernels compute of their masks.

    A backward kernel by keys skips the same blocks, but has a grid of all blocks wherever some
    keys, like those of a shared prompt, are seen by all queries. So it goes by the forward kernel.
    """
    found = {}
    for computation in module.computations.values():
        for instruction in computation.values():
            if re.search(r"splash_m[hq]a_fwd", instruction.name):
                splash = _splash(computation, instruction)
                part = _computed_part(splash)
                found[(*splash.shape, *splash.blocks)] = part
    return found


class Splash(NamedTuple):
    """Shapes of a splash attention kernel."""

    queries: tuple[int, ...]  # the array's sizes: heads, queries, size of a head
    keys: int
    grid: tuple[int, int] | None  # rows and columns of its blocks; None if it has no such mask
    masked: bool  # whether blocks at the diagonal are masked
    width: float  # of a block of keys

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of queries and of keys."""
        return self.queries[-2], self.keys

    @property
    def blocks(self) -> tuple[int, int]:
        """Numbers of blocks of all queries and of all keys."""
        return (self.grid or (0, 0))[0], round(self.keys / self.width)


def _splash(computation: Computation, instruction: Instruction) -> Splash:
    given = [computation[name].arrays for name in instruction.operands if name in computation]
    arrays = [found[0] for found in given if found]
    queries, keys = [a.sizes for a in arrays if a.dtype in ("bf16", "f32")][:2]
    # Its grid of blocks is the first operand of bytes. Beside segments, further integers are a
    # mask: of blocks at the diagonal, and then the grid is narrower or causal.
    grids = [array.sizes for array in arrays if array.dtype == "s8"]
    integers = [array.sizes for array in arrays if array.dtype == "s32"]
    masked = len(integers) > 2 * ("segmented" in instruction.name)
    grid = grids[0][1:] if grids else None
    width = float(keys[-2])
    if grid and masked:
        square = integers[-1][-1] == integers[-1][-2]
        width = integers[-1][-1] if square else keys[-2] / grid[1]
    return Splash(queries, keys[-2], grid, masked, width)


def kernel_flops(
    computation: Computation, instruction: Instruction, forward: Masks
) -> float | None:
    """Returns the operations of a kernel; None if they aren't known.

    It states them, or is splash attention, which computes the blocks of pairs that its mask doesn't
    leave empty.
    """
    if stated := instruction.find(r'"?flops"?\s*:\s*"?(\d+)'):
        return float(stated)
    phase = re.search(r"splash_m[hq]a_(fwd|dq|dkv)", instruction.name)
    if not phase:
        return None
    results = sum(len(a.sizes) >= 3 for a in instruction.arrays if a.dtype == "bf16")
    # dkv that writes dq too is the fused backward pass.
    products = {"fwd": 2, "dq": 3, "dkv": 5 if results > 2 else 4}[phase[1]]
    splash = _splash(computation, instruction)
    part = min(_computed_part(splash), forward.get((*splash.shape, *splash.blocks), 1.0))
    return 2.0 * products * math.prod(splash.queries) * splash.keys * part


def _computed_part(splash: Splash) -> float:
    """Returns the fraction of the pairs of queries and keys whose blocks a grid computes."""
    if splash.grid is None or not splash.masked:
        return 1.0
    rows, columns = splash.grid
    if columns * splash.width < splash.keys:
        return columns * splash.width / splash.keys
    queries, keys = splash.shape
    return (rows + 1) / 2 / rows if queries == keys else 1.0
