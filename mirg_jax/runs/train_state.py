"""The training state, its initial value and its sharding."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int, UInt32

from mirg_jax import sharding
from mirg_jax.errors import ConfigError


class TrainState(NamedTuple):
    """Everything that a training step changes."""

    step: Int[Array, ""]
    key: UInt32[Array, "2"]  # the run's random key; each step folds in its index
    params: nnx.State  # trained parameters only
    opt_state: optax.OptState
    # Updates skipped because the loss or gradients were not finite, or no group was above the gate.
    skipped: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]  # number of most recent updates skipped


def split_trainable(params: nnx.State, freeze: tuple[str, ...]) -> tuple[nnx.State, nnx.State]:
    """Splits parameters into trained and frozen ones.

    Args:
      params: all parameters.
      freeze: names of top-level modules (such as `visual`) whose parameters are frozen.

    Raises:
      ConfigError: if a name is not a top-level module.
    """
    for name in freeze:
        if name not in params:
            raise ConfigError(f"config.freeze: {name!r} is none of {', '.join(map(str, params))}")
    frozen, trained = nnx.split_state(params, lambda path, _: path[0] in freeze, ...)
    return trained, frozen


def init_state(params: nnx.State, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """Creates the training state of step 0."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(jax.random.key(seed)),
        params=params,
        opt_state=optimizer.init(params),
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
    )


def state_shardings(
    params: nnx.State,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    *,
    on_host: bool = False,
) -> TrainState:
    """Returns the shardings of a training state's arrays.

    The optimizer's moments are sharded like their parameters; scalars and the key are replicated.

    Args:
      params: the trained parameters, or their shapes and shardings.
      optimizer: the optimizer.
      mesh: the mesh.
      on_host: whether the moments are kept in the memory of the devices' hosts.
    """
    replicated = sharding.replicated(mesh)
    layouts = {
        jax.tree_util.keystr(path): (leaf.shape, leaf.sharding)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }

    def moment(path, leaf):  # a moment's path ends with its parameter's path
        tails = (jax.tree_util.keystr(path[i:]) for i in range(len(path)))
        shape, layout = next((layouts[t] for t in tails if t in layouts), (None, None))
        if shape != leaf.shape:
            return replicated
        return sharding.on_host(layout) if on_host else layout

    moments = jax.tree_util.tree_map_with_path(moment, jax.eval_shape(optimizer.init, params))
    where = jax.tree.map(lambda leaf: leaf.sharding, params)
    return TrainState(replicated, replicated, where, moments, replicated, replicated)
