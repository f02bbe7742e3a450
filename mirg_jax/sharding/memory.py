"""Jitted functions whose compiled memory plan includes arrays that they don't use.

The compiler may plan to use the device's whole memory, since it doesn't know of arrays that stay
allocated while the program runs, such as the optimizer's moments. These are therefore passed as
unused arguments.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def with_resident(function: Callable, **options) -> Callable:
    """Jits `function` with an additional, unused first argument: `run(resident, *arguments)`.

    Args:
      function: function of `arguments` only.
      **options: options of `jax.jit`.

    Returns:
      The jitted function. `resident` is a tree of arrays that stay allocated while it runs.
    """
    return jax.jit(lambda resident, *arguments: function(*arguments), keep_unused=True, **options)


def accumulating(function: Callable, **options) -> Callable:
    """Jits `function` so that its result is added to a total: `run(total, resident, *arguments)`.

    Args:
      function: function of `arguments` only.
      **options: options of `jax.jit`.

    Returns:
      The jitted function. `total` is the sum so far, which is donated, or None to start a new sum;
      `resident` is as in `with_resident`.
    """

    def run(total, resident, *arguments):
        part = function(*arguments)
        return part if total is None else jax.tree.map(jnp.add, total, part)

    return jax.jit(run, donate_argnums=0, keep_unused=True, **options)
