"""Where the instructions of a compiled program are from, in this package's own words."""

import collections
import re

from mirg_jax.planning.hlo import Computation, Instruction, Module

# What passes on its operands.
CARRIERS = {"get-tuple-element", "tuple", "bitcast", "opt-barrier", "custom-call", "async-update"}
# Files of helpers, whose callers say more about where an instruction is from.
_HELPERS = ("models/layers.py", "sharding/memory.py", "sharding/mesh.py")


class Places:
    """Names the places that a program's instructions are from.

    Args:
      module: the program.
    """

    def __init__(self, module: Module):
        self._module = module
        self._users: dict[int, dict[str, list[Instruction]]] = {}  # by computation and operand
        self._names: dict[int, str] = {}

    def of(self, computation: Computation, *instructions: Instruction) -> str:
        """Returns where the first of these instructions is from that is from somewhere.

        What the compiler made, such as a copy, goes by what takes its result, or by what it takes,
        or else by its own name.
        """
        at = id(instructions[0])
        if at not in self._names:
            found = (source(self._module, one) for one in instructions)
            last = instructions[-1]
            self._names[at] = next(filter(None, found), "") or self._of_made(computation, last)
        return self._names[at]

    def _of_made(self, computation: Computation, one: Instruction) -> str:
        if purpose := self._purpose(computation, one):
            return f"for {purpose}"
        origins = (computation[name] for name in one.operands if name in computation)
        if origin := next(filter(None, (source(self._module, i) for i in origins)), ""):
            return f"of {origin}"
        return f"the compiler's {re.sub(r'[.0-9]+$', '', one.name)}"

    def _purpose(self, computation: Computation, one: Instruction) -> str:
        """Returns where the first instruction is from that takes a result, or "".

        What only waits for it, or hands it on, is passed over.
        """
        users = self._users_in(computation).get(one.name)
        if not users:
            return ""
        user = users[0]
        if user.op in CARRIERS or user.op.endswith("-done"):
            return self._purpose(computation, user)
        return source(self._module, user)

    def _users_in(self, computation: Computation) -> dict[str, list[Instruction]]:
        at = id(computation)
        if at not in self._users:
            users = self._users[at] = collections.defaultdict(list)
            for one in computation.values():
                for name in one.operands:
                    users[name].append(one)
        return self._users[at]


def source(module: Module, instruction: Instruction) -> str:
    """Returns the place in this package that says most about where an instruction is from.

    That is file, line and function, and the pass if it isn't the forward one; "" if there is none.
    """
    own = [frame for frame in module.stack(instruction) if "/mirg_jax/" in frame.file]
    telling = [frame for frame in own if not frame.file.endswith(_HELPERS)] or own
    operation = instruction.find(r'op_name="([^"]*)"')
    if not telling:
        return operation if "/" in operation else ""
    frame = telling[0]
    file = frame.file.rpartition("/mirg_jax/")[2]
    phase = ""
    if "transpose(" in operation:
        phase = ", backward"
    elif "rematted_computation" in operation:
        phase = ", again"
    function = frame.function.replace(".<locals>", "").replace(".__call__", "")
    return f"{file}:{frame.line} {function}{phase}"
