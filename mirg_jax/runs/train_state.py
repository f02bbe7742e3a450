"""What a training run carries from step to step, and where it lies on the devices."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int, UInt32

from mirg_jax import sharding
from mirg_jax.errors import ConfigError


class TrainState(NamedTuple):
    """Everything a step changes. `params` are the trained ones only."""

    step: Int[Array, ""]
    key: UInt32[Array, "2"]  # the run's random key; each step folds its number into it
    params: nnx.State
    opt_state: optax.OptState
    skipped: Int[Array, ""]  # updates left out because something in them was not finite
    skipped_in_a_row: Int[Array, ""]  # up to now


def split_trainable(params: nnx.State, freeze: tuple[str, ...]) -> tuple[nnx.State, nnx.State]:
    """Divides parameters into trained and frozen by their path's first name (`visual`).

    Raises:
      ConfigError: for a name that no parameter begins with.
    """
    for name in freeze:
        if name not in params:
            raise ConfigError(f"config.freeze: {name!r} is none of {', '.join(map(str, params))}")
    frozen, trained = nnx.split_state(params, lambda path, _: path[0] in freeze, ...)
    return trained, frozen


def init_state(params: nnx.State, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """Step 0."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(jax.random.key(seed)),
        params=params,
        opt_state=optimizer.init(params),
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
    )


def state_shardings(
    params: nnx.State, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> TrainState:
    """Where a state lies: the optimizer's moments where their parameters lie, the rest everywhere.

    Args:
      params: arrays, or their shapes and shardings.
    """
    everywhere = sharding.replicated(mesh)
    layouts = {
        jax.tree_util.keystr(path): (leaf.shape, leaf.sharding)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }

    def moment(path, leaf):  # its path ends in that of its parameter
        tails = (jax.tree_util.keystr(path[i:]) for i in range(len(path)))
        shape, layout = next((layouts[t] for t in tails if t in layouts), (None, None))
        return layout if shape == leaf.shape else everywhere

    moments = jax.tree_util.tree_map_with_path(moment, jax.eval_shape(optimizer.init, params))
    where = jax.tree.map(lambda leaf: leaf.sharding, params)
    return TrainState(everywhere, everywhere, where, moments, everywhere, everywhere)
