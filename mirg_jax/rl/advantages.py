"""Group-relative advantages (equation 4).

Axes: B prompts, G completions per prompt (the paper's N).
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def group_advantages(
    rewards: Float[Array, "B G"], *, scale: str = "std", epsilon: float = 1e-4
) -> Float[Array, "B G"]:
    """Computes A_i = (r_i − mean) / (std + ε) within each group (equation 4).

    The standard deviation is the population's, as in the paper's formula. If all rewards of a group
    are equal, its advantages are exactly 0, so that it contributes no policy gradient.

    Args:
      rewards: rewards of the completions.
      scale: "std", or "none" to omit the division (Dr. GRPO, arXiv 2503.20783).
      epsilon: ε, added to the standard deviation.

    Raises:
      ValueError: for another `scale`.
    """
    centred = rewards - rewards.mean(axis=-1, keepdims=True)
    centred = jnp.where(zero_spread(rewards)[..., None], 0.0, centred)
    if scale == "none":
        return centred
    if scale != "std":
        raise ValueError(f"advantage scale {scale!r} is neither 'std' nor 'none'")
    return centred / (rewards.std(axis=-1, keepdims=True) + epsilon)


def zero_spread(rewards: Float[Array, "B G"]) -> Bool[Array, " B"]:
    """Returns which groups have equal rewards for all completions."""
    return rewards.max(axis=-1) == rewards.min(axis=-1)
