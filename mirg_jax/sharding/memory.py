"""Jitted functions whose compiled memory plan includes arrays that they don't use.

The compiler may plan to use the device's whole memory, since it doesn't know of arrays that stay
allocated while the program runs, such as the optimizer's moments. These are therefore passed as
unused arguments; arrays on the hosts are not, since the compiler counts them as if they were on the
devices.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

HOST = "pinned_host"  # the memory kind of arrays that are kept on the devices' hosts


def on_host(where: Sharding) -> Sharding:
    """Returns the same sharding in the memory of the devices' hosts."""
    return where.with_memory_kind(HOST)


def on_devices(where: Sharding) -> Sharding:
    """Returns the same sharding in the devices' own memory."""
    return where.with_memory_kind("device")


def bytes_per_device(tree: Any) -> int:
    """Returns the memory of arrays on one device, from their shapes, dtypes and shardings.

    Arrays that are kept on the hosts take none.
    """
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in resident(tree)
    )


def resident(tree: Any) -> list[Any]:
    """Returns the arrays of a tree, or their shapes, that lie in the devices' own memory."""
    return [leaf for leaf in jax.tree.leaves(tree) if leaf.sharding.memory_kind != HOST]


def resident_on(tree: Any, mesh: Mesh) -> list[jax.Array | jax.ShapeDtypeStruct]:
    """Returns arrays of another mesh, of the same devices, as arrays on `mesh`; copies nothing.

    Each device keeps its part, which becomes a part of the first dimension. To a program that
    doesn't use them they are the same, and the compiler aborts where a program has a `shard_map`
    over an axis of one mesh that an axis of another divides ("manual sub-axis isn't supported").

    Args:
      tree: arrays or their shapes; scalars and what lies on the hosts are left out.
      mesh: the mesh of the program's own arrays.
    """
    return [_on(leaf, mesh) for leaf in resident(tree) if leaf.ndim]


def _on(leaf: jax.Array | jax.ShapeDtypeStruct, mesh: Mesh) -> jax.Array | jax.ShapeDtypeStruct:
    first, *rest = leaf.sharding.shard_shape(leaf.shape)
    shape = (first * mesh.size, *rest)
    where = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=where)
    parts = [shard.data for shard in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(shape, where, parts)


def with_resident(function: Callable, **options) -> Callable:
    """Jits `function` with an additional, unused first argument: `run(resident, *arguments)`.

    Args:
      function: function of `arguments` only.
      **options: options of `jax.jit`.

    Returns:
      The jitted function. `resident` is a tree of arrays that stay allocated while it runs.
    """
    return jax.jit(lambda resident, *arguments: function(*arguments), keep_unused=True, **options)


class Accumulator:
    """A jitted function whose result is added to a total: `add(total, resident, *arguments)`.

    `total` is the sum so far, which is donated, or None for a sum of one; `resident` is as in
    `with_resident`.

    Args:
      function: function of `arguments` only.
      **options: options of `jax.jit`.
    """

    def __init__(self, function: Callable, **options):
        traced = jax.jit(function, inline=True)  # once, for a total of None and of arrays

        def run(total, resident, *arguments):
            part = traced(*arguments)
            return part if total is None else jax.tree.map(jnp.add, total, part)

        self.add = jax.jit(run, donate_argnums=0, keep_unused=True, **options)
        self._zeros: Callable[[], Any] | None = None

    def sum(self, resident: Any, calls: Iterable[tuple], count: int) -> Any:
        """Returns the sum of the function over several arguments.

        A sum of several begins with zeros, so that no other program is compiled for the first.

        Args:
          resident: as above.
          calls: the arguments of each call; each is taken when it is needed.
          count: their number.
        """
        total = None
        for number, arguments in enumerate(calls):
            if number == 0 and count > 1:
                total = self._empty(resident, arguments)
            total = self.add(total, resident, *arguments)
        return total

    def _empty(self, resident: Any, arguments: tuple) -> Any:
        if self._zeros is None:
            shapes = self.add.eval_shape(None, resident, *arguments)
            self._zeros = jax.jit(
                lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes),
                out_shardings=jax.tree.map(lambda leaf: leaf.sharding, shapes),
            )
        return self._zeros()
