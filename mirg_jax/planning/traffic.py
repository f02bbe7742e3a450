"""Bytes of a device's memory (HBM) that an instruction of a TPU program reads and writes."""

import math

from mirg_jax.planning.hlo import HBM, Computation, Instruction, Module

_SLICES = ("dynamic-slice", "gather")
_IN_PLACE = "dynamic-update-slice"


def touched(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Returns the bytes of HBM that an instruction reads and writes.

    Of a large array that it only slices, or updates in place, these are the slice's.

    Args:
      module: the program.
      computation: the computation that the instruction is in.
      instruction: the instruction.
    """
    fused = module.inside(instruction) if instruction.op == "fusion" else None
    total = 0.0
    for number, name in enumerate(instruction.operands):
        if fused is None and number == 0 and instruction.op in (_IN_PLACE, *_SLICES):
            continue  # no more than the result, which is counted below
        operand = computation.get(name)
        if operand is None or operand.shape.startswith("("):
            continue
        for array in operand.arrays[:1]:
            if array.space == HBM:
                read = math.inf if fused is None else _read(module, fused, number)
                total += min(array.bytes, read)
    return total + _written_to_hbm(module, computation, instruction)


def _read(module: Module, fused: Computation, number: int) -> float:
    """Returns the bytes that a fused computation reads of a parameter; infinite if all of it."""
    parameter = f"parameter({number})"
    names = (i.name for i in fused.values() if i.op == "parameter" and parameter in i.text)
    name = next(names, None)
    total = 0.0
    for user in fused.values():
        if name not in user.operands:
            continue
        at = user.operands.index(name)
        if user.op in _SLICES and at == 0:
            total += sum(array.bytes for array in user.arrays)
        elif user.op == "fusion":
            total += _read(module, module.inside(user), at)
        elif not (user.op == _IN_PLACE and at == 0):
            return math.inf
    return total


def _written_to_hbm(module: Module, computation: Computation, instruction: Instruction) -> float:
    spaces = [array.space for array in instruction.arrays]
    if instruction.op == "fusion":
        sizes = _results(module, module.inside(instruction))
    else:
        sizes = [_written(module, computation, instruction)]
    if not instruction.shape.startswith("("):
        spaces = [min(spaces, default=HBM)]
    return sum(size for size, space in zip(sizes, spaces, strict=False) if space == HBM)


def _written(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Returns the bytes that an instruction writes: of an array updated in place, the update."""
    while instruction.op == "bitcast" and instruction.operands[0] in computation:
        instruction = computation[instruction.operands[0]]
    if instruction.op == "fusion":
        return sum(_results(module, module.inside(instruction)))
    if instruction.op == _IN_PLACE and instruction.operands[1] in computation:
        instruction = computation[instruction.operands[1]]
    return sum(array.bytes for array in instruction.arrays)


def _results(module: Module, fused: Computation) -> list[float]:
    """Returns the bytes that a fused computation writes to each of its results."""
    if not fused:
        return []
    root = list(fused.values())[-1]
    if root.op != "tuple":
        return [_written(module, fused, root)]
    return [_written(module, fused, fused[name]) for name in root.operands if name in fused]
