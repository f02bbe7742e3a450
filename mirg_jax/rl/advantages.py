"""Group-relative advantages (equation 4) and other ways to compare a step's completions.

Axes: B prompts, G completions per prompt (the paper's N).
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

SCALES = ("std", "none", "batch_std", "leave_one_out", "gdpo")
# Those that `scale_over_step` completes from the rewards of all groups of a step.
OVER_STEP = ("batch_std", "gdpo")


def group_advantages(
    rewards: Float[Array, "B G"], *, scale: str = "std", epsilon: float = 1e-4
) -> Float[Array, "B G"]:
    """Computes A_i = (r_i − mean) / (std + ε) within each group (equation 4, which has no ε).

    The standard deviation is the population's; the paper doesn't say which. If all rewards of a
    group are equal, its advantages are exactly 0, so that it contributes no policy gradient.

    Args:
      rewards: rewards of the completions.
      scale: "std"; "none" to omit the division (Dr. GRPO, arXiv 2503.20783); or "leave_one_out",
        r_i minus the mean of the group's other rewards (RLOO, arXiv 2402.14740).
      epsilon: ε, added to the standard deviation.

    Raises:
      ValueError: for another `scale`.
    """
    centred = rewards - rewards.mean(axis=-1, keepdims=True)
    centred = jnp.where(zero_spread(rewards)[..., None], 0.0, centred)
    if scale == "none":
        return centred
    if scale == "leave_one_out":  # r_i − (G·mean − r_i) / (G − 1)
        size = rewards.shape[-1]
        return centred * (size / max(size - 1, 1))
    if scale != "std":
        raise ValueError(f"advantage scale {scale!r} is none of std, none, leave_one_out")
    return _divide(centred, rewards.std(axis=-1, keepdims=True) + epsilon)


def decoupled_advantages(
    rewards: Mapping[str, Float[Array, "B G"]], weights: Mapping[str, float], *, epsilon: float
) -> Float[Array, "B G"]:
    """Computes Σ_k w_k A_k, where A_k is equation 4 for reward k alone (GDPO, arXiv 2601.05242).

    `scale_over_step` with "gdpo" completes them.

    Args:
      rewards: each reward by name, before weighting.
      weights: the weights w_k by name.
      epsilon: added to each standard deviation.
    """
    each = [
        weights[name] * group_advantages(reward, epsilon=epsilon)
        for name, reward in rewards.items()
    ]
    return jnp.stack(each).sum(axis=0)


def scale_over_step(
    advantages: Float[Array, "B G"],
    rewards: Float[Array, "B G"],
    *,
    scale: str,
    epsilon: float,
    used: Bool[Array, " B"] | None = None,
) -> Float[Array, "B G"]:
    """Scales advantages by statistics over all completions of a step.

    Groups whose advantages are all 0 keep them.

    Args:
      advantages: for "batch_std", r_i − mean of the group; for "gdpo", the weighted sum of each
        reward's advantages.
      rewards: the weighted sums of the rewards.
      scale: "batch_std", division by the standard deviation of the step's rewards (Lite PPO, arXiv
        2508.08221); or "gdpo", subtraction of the step's mean advantage and division by the
        standard deviation of its advantages (arXiv 2601.05242).
      epsilon: added to the standard deviation.
      used: the groups that the step learns from, at least one, whose statistics count; None for
        all.

    Raises:
      ValueError: for another `scale`.
    """
    where = None if used is None else jnp.broadcast_to(used[:, None], rewards.shape)
    if scale == "batch_std":
        return _divide(advantages, rewards.std(where=where) + epsilon)
    if scale != "gdpo":
        raise ValueError(f"advantage scale {scale!r} is none of {', '.join(OVER_STEP)}")
    idle = (advantages == 0).all(axis=-1, keepdims=True)
    centred = jnp.where(idle, 0.0, advantages - advantages.mean(where=where))
    return _divide(centred, advantages.std(where=where) + epsilon)


def difficulty_weights(overlaps: Float[Array, "B G"]) -> Float[Array, "B 1"]:
    """Computes exp(1 − mean IoU) of each group (UniVG-R1, arXiv 2505.14231).

    There the weight multiplies the policy term of the loss, which is linear in the advantages.

    Args:
      overlaps: the mean IoU of each completion.
    """
    return jnp.exp(1 - overlaps.mean(axis=-1, keepdims=True))


def zero_spread(rewards: Float[Array, "B G"]) -> Bool[Array, " B"]:
    """Returns which groups have equal rewards for all completions."""
    return rewards.max(axis=-1) == rewards.min(axis=-1)


def _divide(values: Float[Array, "B G"], spread: Array) -> Float[Array, "B G"]:
    """Divides by a spread, which is 0 only with ε = 0 and where all values are 0."""
    return values / jnp.where(spread > 0, spread, 1.0)
