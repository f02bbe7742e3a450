"""Jitted programs that are told what else lies on the devices while they run.

A compiler plans a program's memory up to the device's, and doesn't know of arrays that wait
meanwhile, such as the optimizer's moments. They are passed as arguments that nothing uses.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def with_resident(function: Callable, **options) -> Callable:
    """Jits `function` as `run(resident, *arguments)`.

    Args:
      function: of `arguments` alone.
      options: of `jax.jit`.

    Returns:
      A jitted function whose first argument is a tree of arrays that lie on the devices meanwhile.
    """
    return jax.jit(lambda resident, *arguments: function(*arguments), keep_unused=True, **options)


def accumulating(function: Callable, **options) -> Callable:
    """Jits `function` as `run(total, resident, *arguments)`, which adds its result to `total`.

    Args:
      function: of `arguments` alone.
      options: of `jax.jit`.

    Returns:
      A jitted function of a sum so far, which is donated (None begins a new sum), of what lies on
      the devices meanwhile as in `with_resident`, and of the arguments.
    """

    def run(total, resident, *arguments):
        part = function(*arguments)
        return part if total is None else jax.tree.map(jnp.add, total, part)

    return jax.jit(run, donate_argnums=0, keep_unused=True, **options)
