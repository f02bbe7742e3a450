"""Reads the scheduled text of a compiled TPU program: its instructions, and where they are from.

Each line of a computation is an instruction, `%name = shape op(%operand, …), attribute=value, …`.
The order of the lines is the order in which the device takes them.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from mirg_jax.errors import ConfigError

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*)$")
_OP = re.compile(r"(?:^|[\s)}])([a-z][a-z0-9\-]*)\(")
_ARRAY = re.compile(
    r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\]"  # dtype and sizes
    r"(?:\{([\d,]*)(?::([^{}]*))?\})?"  # the order of axes in memory, from the minor one; tiles
)
_BYTES = {"pred": 1, "s4": 0.5, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "f64": 8}
_BYTES |= dict.fromkeys(("s8", "u8", "f8e4m3fn", "f8e5m2"), 1)
_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
_NO_ESTIMATE = 2**62  # what the compiler writes where it has none

HBM, HOST, SEMAPHORES = 0, 5, (2, 4)  # numbers of memory spaces; 1 is VMEM, on the core


class Array(NamedTuple):
    """An array of an instruction's shape.

    Attributes:
      dtype: as in HLO, such as bf16.
      sizes: of its axes.
      bytes: in memory, where the last axes are padded to tiles.
      space: number of the memory space that it lies in.
    """

    dtype: str
    sizes: list[int]
    bytes: float
    space: int


def arrays(shape: str) -> list[Array]:
    """Returns the arrays of a shape that are no scalars."""
    found = []
    for dtype, sizes, order, layout in _ARRAY.findall(shape):
        if not sizes:
            continue
        sizes = [int(size) for size in sizes.split(",")]
        padded = list(sizes)
        if order and (tile := re.search(r"T\((\d+)(?:,(\d+))?\)", layout)):
            tiles = [int(size) for size in tile.groups() if size][::-1]
            for axis, size in zip(map(int, order.split(",")), tiles, strict=False):
                padded[axis] = -(-padded[axis] // size) * size
        space = re.search(r"S\((\d+)\)", layout)
        size = math.prod(padded) * _BYTES.get(dtype, 4)
        found.append(Array(dtype, sizes, size, int(space[1]) if space else HBM))
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
    """An instruction of a program.

    Attributes:
      name: unique within its computation.
      op: such as `fusion`, or `all-gather`.
      shape: text of its result's shape.
      operands: names of the instructions whose results it takes.
      text: all that follows its name.
    """

    name: str
    op: str
    shape: str
    operands: tuple[str, ...]
    text: str

    @classmethod
    def parse(cls, name: str, text: str) -> "Instruction":
        """Parses what follows an instruction's name."""
        op = _OP.search(text.split(", metadata=")[0].split(", backend_config")[0])
        if op is None:
            return cls(name, "", "", (), text)
        operands = re.findall(r"%([\w.\-]+)", text[op.end() :].split(")")[0])
        return cls(name, op[1], text[: op.start()], tuple(operands), text)

    @functools.cached_property
    def arrays(self) -> list[Array]:
        """The arrays of its result."""
        return arrays(self.shape)

    @functools.cached_property
    def cycles(self) -> int | None:
        """The compiler's estimate of its time in cycles; None if there is none."""
        found = self.find(r'"estimated_cycles":"(\d+)"')
        return int(found) if found and int(found) < _NO_ESTIMATE else None

    @functools.cached_property
    def called(self) -> str:
        """The name of the computation that a fusion or call runs, or ""."""
        return self.find(r"(?:calls|to_apply)=%([\w.\-]+)")

    @property
    def target(self) -> str:
        """The target of a custom call, or ""."""
        return self.find(r'custom_call_target="([^"]*)"') if self.op == "custom-call" else ""

    def find(self, pattern: str) -> str:
        """Returns the first group of a pattern in its text, or ""."""
        found = re.search(pattern, self.text)
        return found[1] if found else ""


Computation = dict[str, Instruction]


class Frame(NamedTuple):
    """A place in the source: a line in a function that was traced."""

    file: str
    function: str
    line: str
    parent: int  # number of the frame that called it; 0: none


@dataclasses.dataclass(frozen=True, eq=False)
class Module:
    """A compiled program.

    Attributes:
      computations: by name; the instructions of each by name, in order.
      entry: name of the computation that the program begins with.
      frames: places in the source, by number.
    """

    computations: dict[str, Computation]
    entry: str
    frames: dict[int, Frame]

    def body(self, loop: Instruction) -> Computation:
        """Returns the computation that a loop repeats."""
        return self.computations[loop.find(r"body=%([\w.\-]+)")]

    def inside(self, instruction: Instruction) -> Computation:
        """Returns the computation that an instruction calls, which is empty if it calls none."""
        return self.computations.get(instruction.called, {})

    def stack(self, instruction: Instruction) -> Iterator[Frame]:
        """Yields the places in the source that an instruction is from, the innermost first."""
        number = int(instruction.find(r"stack_frame_id=(\d+)") or 0)
        seen = set()
        while number in self.frames and number not in seen:
            seen.add(number)
            yield self.frames[number]
            number = self.frames[number].parent


def parse(text: str) -> Module:
    """Parses the text of a compiled program.

    Raises:
      ConfigError: if it isn't what this version of the planner reads.
    """
    computations: dict[str, Computation] = {}
    tables: dict[str, dict[int, str]] = {name: {} for name in _TABLES}
    entry, name = "", ""
    table = current = None
    for line in text.splitlines():
        if line in tables:
            table = tables[line]
        elif head := _HEAD.match(line):
            current = computations[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif line == "}":
            current = None
        elif current is None:
            if table is not None and (row := re.match(r"(\d+) (.*)", line)):
                table[int(row[1])] = row[2]
        elif found := _LINE.match(line):
            name = found[1]
            current[name] = Instruction.parse(name, found[2])
        elif name in current:  # a line break within an attribute
            current[name] = Instruction.parse(name, current[name].text + line)
    if not entry or not any(i.cycles for c in computations.values() for i in c.values()):
        raise ConfigError(
            "no seconds: the compiler's text has no estimated_cycles, which they are predicted "
            "from; use the libtpu of benchmarks/results/plans.json"
        )
    return Module(computations, entry, _frames(tables))


def _frames(tables: dict[str, dict[int, str]]) -> dict[int, Frame]:
    def fields(text: str) -> dict[str, int]:
        return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", text)}

    found = {}
    for number, row in tables["StackFrames"].items():
        frame = fields(row)
        place = fields(tables["FileLocations"].get(frame.get("file_location_id", 0), ""))
        found[number] = Frame(
            tables["FileNames"].get(place.get("file_name_id", 0), "").strip('"'),
            tables["FunctionNames"].get(place.get("function_name_id", 0), "").strip('"'),
            str(place.get("line", "")),
            frame.get("parent_frame_id", 0) - 1,
        )
    return found


# Loops --------------------------------------------------------------------------------------------


def trips(module: Module, loop: Instruction) -> int | None:
    """Returns how often a loop runs its body; None if its text doesn't say.

    The text says it itself, or the loop counts up to a constant: a scan, or a matrix product in
    windows, which takes two steps at once.
    """
    if known := loop.find(r'"known_trip_count":\{"n":"(\d+)"\}'):
        return int(known)
    condition = module.computations[loop.find(r"condition=%([\w.\-]+)")].values()
    limits = [n for i in condition if i.op == "constant" and (n := constant(i)) is not None]
    counters = [i.find(r"index=(\d+)") for i in condition if i.op == "get-tuple-element"]
    compares = sum(i.op == "compare" for i in condition)
    if not len(limits) == len(counters) == compares == 1:
        return None
    body = module.body(loop)
    added = body.get(list(body.values())[-1].operands[int(counters[0])])
    step = 1
    if added is not None and added.op == "add":
        terms = [constant(body[name]) for name in added.operands if name in body]
        step = next((term for term in terms if term), 1)
    return -(-limits[0] // step)


def constant(instruction: Instruction) -> int | None:
    """Returns the value of an integer constant; None for anything else."""
    found = instruction.find(r"^\S+ constant\((\d+)\)")
    return int(found) if found else None


# Operations ---------------------------------------------------------------------------------------


def flops(module: Module, computation: Computation) -> float:
    """Returns the operations of the matrix products in a computation, without loops."""
    total = 0.0
    for instruction in computation.values():
        if instruction.op in ("fusion", "call"):
            total += flops(module, module.inside(instruction))
        elif instruction.op == "dot":
            left = _sizes(computation, instruction.operands[0])
            axes = instruction.find(r"lhs_contracting_dims=\{([\d,]*)\}").split(",")
            depth = math.prod(left[int(axis)] for axis in axes if axis)
            total += 2.0 * depth * math.prod(instruction.arrays[0].sizes)
        elif instruction.op == "convolution":
            total += _convolution(computation, instruction)
    return total


def _sizes(computation: Computation, name: str) -> list[int]:
    found = computation[name].arrays
    return found[0].sizes if found else []


def _convolution(computation: Computation, instruction: Instruction) -> float:
    """The compiler writes matrix products as convolutions, whose windows are batch axes."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.text)
    if not labels or not instruction.arrays:
        return 0.0
    named = zip(
        labels.groups(),
        [
            *(_sizes(computation, name) for name in instruction.operands[:2]),
            instruction.arrays[0].sizes,
        ],
        strict=True,
    )
    left, right, out = (dict(zip(axes, sizes, strict=False)) for axes, sizes in named)
    depth = right["i"]
    for axis in left.keys() - {"b", "f"}:
        if left[axis] == right[axis] and out[axis] == 1:  # a window over all of the axis
            depth *= left[axis]
    return 2.0 * math.prod(out.values()) * depth
