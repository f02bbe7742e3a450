"""GRPO: group advantages (equation 4), KL estimators, and the clipped objective (equation 5).

Axes: B prompts, G completions of each (the paper's N), L tokens.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def kl_estimate(
    logprobs: Float[Array, "*N"],
    reference: Float[Array, "*N"],
    kind: str = "k3",
    clamp: float = 10.0,
) -> Float[Array, "*N"]:
    """Estimates KL(π ‖ π_ref) from the log-probs of sampled tokens (Schulman, 2020).

    With d = log π_ref − log π: k1 = −d, k2 = d²/2, k3 = eᵈ − 1 − d. The log-ratio is clamped to
    ±`clamp`, since eᵈ overflows when the policies part.
    """
    d = jnp.clip(reference - logprobs, -clamp, clamp)
    if kind == "k1":
        return -d
    if kind == "k2":
        return 0.5 * d**2
    if kind == "k3":
        return jnp.expm1(d) - d
    raise ValueError(f"KL estimator {kind!r} is none of k1, k2, k3")


def reduce_tokens(
    values: Float[Array, "B G L"],
    mask: Bool[Array, "B G L"],
    kind: str,
    *,
    sequences: Float[Array, ""] | float,
    tokens: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """This micro-batch's share of a mean over the whole step's tokens.

    Args:
      kind: "sequence", a mean over completions of the mean over their tokens (equation 5's 1/N);
        "token", over all tokens (DAPO); "constant", the sum over completions × L (Dr. GRPO).
      sequences: completions of the whole step, so that shares of several micro-batches add up to
        the step's mean.
      tokens: completion tokens of the whole step.
    """
    values = jnp.where(mask, values, 0.0)
    if kind == "sequence":
        return (values.sum(-1) / jnp.maximum(mask.sum(-1), 1)).sum() / sequences
    if kind == "token":
        return values.sum() / tokens
    if kind == "constant":
        return values.sum() / (sequences * values.shape[-1])
    raise ValueError(f"loss normalisation {kind!r} is none of sequence, token, constant")


class PolicyLoss(NamedTuple):
    """The loss of each token, and whether the clip was active there."""

    loss: Float[Array, "B G L"]
    clipped: Bool[Array, "B G L"]


def policy_loss(
    logprobs: Float[Array, "B G L"],
    old_logprobs: Float[Array, "B G L"],
    advantage: Float[Array, "B G"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> PolicyLoss:
    """−min(ρ A, clip(ρ, 1 − low, 1 + high) A) with ρ = π / π_old, a token at a time.

    The first term of equation 5 with PPO's clip. `old_logprobs` are constants; on the first
    update after a rollout ρ is 1 and its gradient is that of log π.
    """
    ratio = jnp.exp(jnp.clip(logprobs - old_logprobs, -20.0, 20.0))
    A = advantage[..., None]
    free, held = ratio * A, jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * A
    return PolicyLoss(-jnp.minimum(free, held), held < free)
