"""The optimizer, its learning-rate schedule, and the update step."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from mirg_jax import sharding
from mirg_jax.runs.settings import OptimizerSettings
from mirg_jax.runs.train_state import TrainState


def make_schedule(settings: OptimizerSettings, num_updates: int) -> optax.Schedule:
    """Creates the learning-rate schedule.

    It has a linear warm-up, followed by cosine decay to `final_ratio` of the peak or by a constant
    rate.

    Args:
      settings: the optimizer's settings.
      num_updates: number of updates in the whole run.
    """
    warmup = round(settings.warmup_ratio * num_updates)
    peak = settings.learning_rate
    if settings.schedule == "cosine":
        rest = max(num_updates - warmup, 1)
        after = optax.cosine_decay_schedule(peak, rest, settings.final_ratio)
    else:
        after = optax.constant_schedule(peak)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def _name(path) -> str:
    """Returns the last name in a parameter's path: kernel, bias, scale, embedding…"""
    return next(str(part.key) for part in reversed(path) if hasattr(part, "key"))


def _is_matrix(path) -> bool:
    return _name(path) in ("kernel", "embedding", "lora_a", "lora_b")


def _muon_axes(params):
    """Returns Muon's matrix axes for hidden matrices, and None for parameters that use Adam.

    Embeddings, the output head, norms, biases and adapters use Adam.
    """

    def one(path, leaf):
        inner = _name(path) == "kernel" and "lm_head" not in jax.tree_util.keystr(path)
        axes = optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)
        return axes if inner else None

    return jax.tree_util.tree_map_with_path(one, params)


def make_optimizer(settings: OptimizerSettings, num_updates: int) -> optax.GradientTransformation:
    """Creates the optimizer: AdamW, or Muon with Adam for all but hidden matrices.

    Gradients are clipped by their global norm, unless `clip_norm` is 0. Weight decay applies to
    matrices, not to biases and norms.

    Args:
      settings: the optimizer's settings.
      num_updates: number of updates in the whole run.
    """
    rate = make_schedule(settings, num_updates)

    def decayed(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: _is_matrix(path), params)

    if settings.name == "adamw":
        step = optax.adamw(
            rate,
            b1=settings.b1,
            b2=settings.b2,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            mask=decayed,
        )
    else:
        step = optax.contrib.muon(
            rate,
            adam_b1=settings.b1,
            adam_b2=settings.b2,
            weight_decay=settings.weight_decay,
            adam_learning_rate=lambda count: settings.adam_ratio * rate(count),
            muon_weight_dimension_numbers=_muon_axes,
        )
    clip = optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity()
    return optax.chain(clip, step)


def apply_gradients(
    state: TrainState,
    grads: nnx.State,
    loss: Float[Array, ""],
    *,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Float[Array, ""]]:
    """Applies one optimizer update.

    If the loss or the gradient norm is not finite, parameters and optimizer state stay unchanged
    and the update is counted as skipped.

    Args:
      state: the training state.
      grads: gradients of the trained parameters.
      loss: the loss.
      optimizer: the optimizer.

    Returns:
      The new state, and the gradients' global norm.
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
        step=state.step,
        key=state.key,
        params=params,
        opt_state=opt_state,
        skipped=state.skipped + skipped,
        skipped_in_a_row=(state.skipped_in_a_row + skipped) * skipped,
    ), norm


def make_update(optimizer: optax.GradientTransformation, layout: TrainState) -> Callable:
    """Returns `apply_gradients` under `jit`, with the state donated.

    Args:
      optimizer: the optimizer.
      layout: shardings of the training state, all of it on the devices.
    """
    return jax.jit(
        functools.partial(apply_gradients, optimizer=optimizer),
        donate_argnums=0,
        out_shardings=(layout, layout.step),
    )


def make_apply(
    optimizer: optax.GradientTransformation, layout: TrainState
) -> Callable[[TrainState, nnx.State, Array], tuple[TrainState, Float[Array, ""]]]:
    """Returns `make_update`'s function, for moments that may be kept on the hosts.

    Args:
      optimizer: the optimizer.
      layout: shardings of the training state.
    """
    moments = jax.tree.map(sharding.on_devices, layout.opt_state)
    update = make_update(optimizer, layout._replace(opt_state=moments))

    def apply(state: TrainState, grads: nnx.State, loss: Array):
        # A copy to where an array is already is none.
        state = state._replace(opt_state=jax.device_put(state.opt_state, moments))
        state, norm = update(state, grads, loss)
        return state._replace(opt_state=jax.device_put(state.opt_state, layout.opt_state)), norm

    return apply
