"""GRPO's objective (equation 5): clipped policy loss, KL estimators, and the mean over tokens.

Axes: B prompts, G completions per prompt (the paper's N), L tokens.
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
    """Estimates KL(π ‖ π_ref) from the log-probabilities of sampled tokens (Schulman, 2020).

    With d = log π_ref − log π: k1 = −d, k2 = d²/2, k3 = eᵈ − 1 − d.

    Args:
      logprobs: log π of the tokens.
      reference: log π_ref of the tokens.
      kind: "k1", "k2" or "k3".
      clamp: bound on |d|, since eᵈ overflows when the policies differ strongly.

    Raises:
      ValueError: for another `kind`.
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
    """Computes a micro-batch's contribution to the mean over all tokens of a step.

    The contributions of a step's micro-batches add up to the step's mean.

    Args:
      values: one value per token.
      mask: which tokens count.
      kind: "sequence", the mean over completions of the mean over their tokens (equation 5's 1/N);
        "token", the mean over all tokens (DAPO); "constant", the sum divided by completions × L
        (Dr. GRPO).
      sequences: number of completions in the whole step.
      tokens: number of completion tokens in the whole step.

    Raises:
      ValueError: for another `kind`.
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
    """Policy loss of each token, and whether it was clipped."""

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
    """Computes −min(ρ A, clip(ρ, 1 − low, 1 + high) A) with ρ = π / π_old for each token.

    This is the first term of equation 5 with PPO's clipping. On the first update after a rollout,
    ρ is 1 and its gradient is that of log π.

    Args:
      logprobs: log π of the tokens.
      old_logprobs: log π_old of the tokens; constants without gradient.
      advantage: A, one per completion.
      clip_low: lower clipping range.
      clip_high: upper clipping range.
    """
    ratio = jnp.exp(jnp.clip(logprobs - old_logprobs, -20.0, 20.0))
    A = advantage[..., None]
    unclipped, clipped = ratio * A, jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * A
    return PolicyLoss(-jnp.minimum(unclipped, clipped), clipped < unclipped)
