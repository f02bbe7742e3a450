"""What a training run carries from step to step, and the optimizer that moves it."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt32
from ml_collections import ConfigDict

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


def schedule(config: ConfigDict, num_steps: int) -> optax.Schedule:
    """Linear warm-up, then cosine decay to `final_ratio` of the peak, or constant."""
    warmup = round(config.warmup_ratio * num_steps)
    peak = config.learning_rate
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(num_steps - warmup, 1), config.final_ratio)
    elif config.schedule == "constant":
        after = optax.constant_schedule(peak)
    else:
        raise ConfigError(f"optimizer.schedule {config.schedule!r} is neither cosine nor constant")
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def _name(path) -> str:
    """The last name of a parameter's path: kernel, bias, scale, embedding."""
    return next(str(part.key) for part in reversed(path) if hasattr(part, "key"))


def _is_matrix(path) -> bool:
    return _name(path) in ("kernel", "embedding", "lora_a", "lora_b")


def _muon_axes(params):
    """Muon moves the matrices inside the towers; embeddings, norms, biases, adapters get Adam."""

    def one(path, leaf):
        inner = _name(path) == "kernel" and "lm_head" not in jax.tree_util.keystr(path)
        axes = optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)
        return axes if inner else None

    return jax.tree_util.tree_map_with_path(one, params)


def make_optimizer(config: ConfigDict, num_steps: int) -> optax.GradientTransformation:
    """AdamW, or Muon with Adam for what isn't a hidden matrix, behind a clip of the global norm.

    Weights decay, biases and norms don't.
    """
    rate = schedule(config, num_steps)

    def decayed(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: _is_matrix(path), params)

    if config.name == "adamw":
        step = optax.adamw(
            rate,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decayed,
        )
    elif config.name == "muon":
        step = optax.contrib.muon(
            rate,
            adam_b1=config.b1,
            adam_b2=config.b2,
            weight_decay=config.weight_decay,
            adam_learning_rate=lambda count: config.adam_ratio * rate(count),
            muon_weight_dimension_numbers=_muon_axes,
        )
    else:
        raise ConfigError(f"optimizer.name {config.name!r} is neither adamw nor muon")
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), step)


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


def apply_gradients(
    state: TrainState,
    grads: nnx.State,
    loss: Float[Array, ""],
    *,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Float[Array, ""]]:
    """One optimizer step; returns the gradients' global norm beside the new state.

    Where the loss or that norm is not finite, parameters and optimizer stay as they were, and the
    step is counted as skipped.
    """
    norm = optax.global_norm(grads)
    good = jnp.isfinite(norm) & jnp.isfinite(loss)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    moved = optax.apply_updates(state.params, updates), opt_state
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(good, new, old), moved, (state.params, state.opt_state)
    )
    skipped = (~good).astype(jnp.int32)
    return TrainState(
        step=state.step + 1,
        key=state.key,
        params=params,
        opt_state=opt_state,
        skipped=state.skipped + skipped,
        skipped_in_a_row=(state.skipped_in_a_row + skipped) * skipped,
    ), norm


def make_apply(
    optimizer: optax.GradientTransformation, layout: TrainState
) -> Callable[[TrainState, nnx.State], tuple[TrainState, Float[Array, ""]]]:
    """`apply_gradients` under `jit`, the old state given away and the new one in its place."""
    return jax.jit(
        functools.partial(apply_gradients, optimizer=optimizer),
        donate_argnums=0,
        out_shardings=(layout, layout.step),
    )


def beside(function: Callable, **options) -> Callable:
    """`run(others, *arguments)` under `jit`, where `others` lie on the devices meanwhile.

    They aren't used, but the compiler, which plans a program's memory up to the device's, counts
    them in.

    Args:
      options: of `jax.jit`.
    """
    return jax.jit(lambda others, *arguments: function(*arguments), keep_unused=True, **options)


def accumulating(function: Callable, **options) -> Callable:
    """`run(total, others, *arguments)`: adds what `function` returns to `total`, which is given
    away; None begins a new one. `others` and `options` as for `beside`."""

    def run(total, others, *arguments):
        part = function(*arguments)
        return part if total is None else jax.tree.map(jnp.add, total, part)

    return jax.jit(run, donate_argnums=0, keep_unused=True, **options)
