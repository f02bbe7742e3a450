"""Advantages within a group of completions (equation 4).

Axes: B prompts, G completions of each (the paper's N).
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def group_advantages(
    rewards: Float[Array, "B G"], *, scale: str = "std", epsilon: float = 1e-4
) -> Float[Array, "B G"]:
    """A_i = (r_i − mean) / (std + ε) within each group (equation 4).

    The standard deviation is the population's, as in the paper's formula. A group whose rewards
    are all equal teaches nothing: its advantages are exactly 0.

    Args:
      scale: "std", or "none" to leave the division out (Dr. GRPO, arXiv 2503.20783).
    """
    centred = rewards - rewards.mean(axis=-1, keepdims=True)
    centred = jnp.where(zero_spread(rewards)[..., None], 0.0, centred)
    if scale == "none":
        return centred
    if scale != "std":
        raise ValueError(f"advantage scale {scale!r} is neither 'std' nor 'none'")
    return centred / (rewards.std(axis=-1, keepdims=True) + epsilon)


def zero_spread(rewards: Float[Array, "B G"]) -> Bool[Array, " B"]:
    """Which groups have equal rewards throughout."""
    return rewards.max(axis=-1) == rewards.min(axis=-1)
