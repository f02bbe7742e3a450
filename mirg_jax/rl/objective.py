"""GRPO's objective (equation 5) and others: policy losses, KL estimators, the mean over tokens.

Equation 5 has the ratio of whole completions, without clipping. As in GRPO's own paper (arXiv
2402.03300, equation 3), ratios are here those of tokens, clipped, and the mean over a completion is
that of its tokens.

Axes: B prompts, G completions per prompt (the paper's N), L tokens. ρ = π / π_old is the ratio of a
token, and A the advantage of its completion.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def kl_estimate(
    logprobs: Float[Array, "*N"],
    reference: Float[Array, "*N"],
    kind: str = "k3",
    clamp: float = 10.0,
) -> Float[Array, "*N"]:
    """Estimates KL(π ‖ π_ref) from the log-probabilities of sampled tokens (Schulman, 2020).

    With d = log π_ref − log π: k1 = −d, k2 = d²/2, k3 = eᵈ − 1 − d. In a loss the gradient of k2 is
    on average that of KL(π ‖ π_ref) and that of k3 the gradient of KL(π_ref ‖ π), taken where π is
    what was sampled from. That of k1 is 0: it holds nothing back.

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
    longest: int,
) -> Float[Array, ""]:
    """Computes a micro-batch's contribution to the mean over all tokens of a step.

    The contributions of a step's micro-batches add up to the step's mean.

    Args:
      values: one value per token.
      mask: which tokens count.
      kind: "sequence", the mean over completions (equation 5's 1/N) of the mean over their tokens;
        "token", the mean over all tokens (DAPO); "constant", the sum divided by completions ×
        `longest` (Dr. GRPO).
      sequences: number of completions in the whole step.
      tokens: number of completion tokens in the whole step.
      longest: tokens that a completion may have, however far this micro-batch is padded.

    Raises:
      ValueError: for another `kind`.
    """
    values = jnp.where(mask, values, 0.0)
    if kind == "sequence":
        return (values.sum(-1) / jnp.maximum(mask.sum(-1), 1)).sum() / sequences
    if kind == "token":
        return values.sum() / tokens
    if kind == "constant":
        return values.sum() / (sequences * longest)
    raise ValueError(f"loss normalisation {kind!r} is none of sequence, token, constant")


def importance_weights(
    logprobs: Float[Array, "B G L"],
    sampled: Float[Array, "B G L"],
    mask: Bool[Array, "B G L"],
    cap: float,
) -> Float[Array, "B G L"]:
    """Computes min(π_old / π_sampled, cap) for each token; 1 where the mask is False.

    The weights of truncated importance sampling (TIS, Yao et al. 2025, "Your efficient RL framework
    secretly brings you off-policy RL training"). They correct for a sampler that computes the same
    policy otherwise, as with 8-bit weights.

    Args:
      logprobs: log π_old of the tokens, of the learner before its updates.
      sampled: log π of the tokens by the sampler.
      mask: which tokens count.
      cap: the largest weight.

    Returns:
      The weights, without gradient.
    """
    weights = jnp.minimum(_ratio(logprobs, sampled, mask), cap)
    return jax.lax.stop_gradient(jnp.where(mask, weights, 1.0))


class PolicyLoss(NamedTuple):
    """Policy loss of each token, and whether its gradient was clipped."""

    loss: Float[Array, "B G L"]
    clipped: Bool[Array, "B G L"]


class Bounds(NamedTuple):
    """How far the policy may move from the one that sampled, in the terms of each policy loss."""

    clip_low: float = 0.2  # ratios are clipped to 1 − clip_low … 1 + clip_high
    clip_high: float = 0.2
    dual_clip: float = 0.0  # PPO's bound on ratios of negative advantages; 0: none
    tau_positive: float = 1.0  # SAPO's temperatures for positive and for other advantages
    tau_negative: float = 1.05


def policy_loss(
    logprobs: Float[Array, "B G L"],
    old_logprobs: Float[Array, "B G L"],
    advantage: Float[Array, "B G"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = 0.0,
) -> PolicyLoss:
    """Computes −min(ρ A, clip(ρ, 1 − low, 1 + high) A) with ρ = π / π_old for each token.

    This is the first term of equation 5 for each token, with PPO's clipping. On the first update
    after a rollout, ρ is 1 and its gradient is that of log π. With `dual_clip` c, the objective of
    a negative advantage is never below c A (dual-clip PPO, arXiv 1912.09729).

    Args:
      logprobs: log π of the tokens.
      old_logprobs: log π_old of the tokens; constants without gradient.
      advantage: A, one per completion.
      clip_low: lower clipping range.
      clip_high: upper clipping range; DAPO's clip-higher (arXiv 2503.14476) has a larger one.
      dual_clip: c, above 1; 0: no such bound.
    """
    ratio = jnp.exp(jnp.clip(logprobs - old_logprobs, -20.0, 20.0))
    A = advantage[..., None]
    unclipped, clipped = ratio * A, jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * A
    lower = jnp.minimum(unclipped, clipped)
    if not dual_clip:
        return PolicyLoss(-lower, clipped < unclipped)
    bound = dual_clip * A
    low = (A < 0) & (lower < bound)
    return PolicyLoss(-jnp.where(low, bound, lower), (clipped < unclipped) | low)


def _ppo(logprobs, old_logprobs, advantage, mask, bounds: Bounds) -> PolicyLoss:
    del mask
    clips = {name: getattr(bounds, name) for name in ("clip_low", "clip_high", "dual_clip")}
    return policy_loss(logprobs, old_logprobs, advantage, **clips)


def sequence_policy_loss(
    logprobs: Float[Array, "B G L"],
    old_logprobs: Float[Array, "B G L"],
    advantage: Float[Array, "B G"],
    mask: Bool[Array, "B G L"],
    bounds: Bounds,
) -> PolicyLoss:
    """Computes −min(s A, clip(s, 1 − low, 1 + high) A), the same for all tokens of a completion.

    s = exp(mean over the completion's tokens of log ρ) is the ratio of whole completions,
    normalised by their length (GSPO, arXiv 2507.18071, equations 5 and 7).
    """
    logs = jnp.where(mask, logprobs - old_logprobs, 0.0).sum(-1) / jnp.maximum(mask.sum(-1), 1)
    same = jnp.broadcast_to(logs[..., None], mask.shape)
    return policy_loss(
        same,
        jnp.zeros_like(same),
        advantage,
        clip_low=bounds.clip_low,
        clip_high=bounds.clip_high,
    )


def weighted_loss(
    logprobs: Float[Array, "B G L"],
    old_logprobs: Float[Array, "B G L"],
    advantage: Float[Array, "B G"],
    mask: Bool[Array, "B G L"],
    bounds: Bounds,
) -> PolicyLoss:
    """Computes −sg(clip(ρ, 1 − low, 1 + high)) A log π, where sg stops gradients.

    The ratio is a bounded weight and every token keeps a gradient (CISPO, arXiv 2506.13585,
    equations 4 and 5; there only the upper bound is used, as with `clip_low` of 1).
    """
    ratio = _ratio(logprobs, old_logprobs, mask)
    weight = jnp.clip(ratio, 1 - bounds.clip_low, 1 + bounds.clip_high)
    loss = -jax.lax.stop_gradient(weight) * advantage[..., None] * jnp.where(mask, logprobs, 0.0)
    return PolicyLoss(loss, weight != ratio)


def soft_gate_loss(
    logprobs: Float[Array, "B G L"],
    old_logprobs: Float[Array, "B G L"],
    advantage: Float[Array, "B G"],
    mask: Bool[Array, "B G L"],
    bounds: Bounds,
) -> PolicyLoss:
    """Computes −(4 / τ) σ(τ (ρ − 1)) A, a soft gate in place of clipping (SAPO, arXiv 2511.20347).

    τ is one temperature for positive advantages and another for the rest. At ρ = 1 the gradient is
    that of log π; it falls smoothly to 0 on both sides.
    """
    A = advantage[..., None]
    tau = jnp.where(A > 0, bounds.tau_positive, bounds.tau_negative)
    gate = jax.nn.sigmoid(tau * (_ratio(logprobs, old_logprobs, mask) - 1)) * (4 / tau)
    return PolicyLoss(-gate * A, jnp.zeros_like(mask))


def reinforce_loss(
    logprobs: Float[Array, "B G L"],
    old_logprobs: Float[Array, "B G L"],
    advantage: Float[Array, "B G"],
    mask: Bool[Array, "B G L"],
    bounds: Bounds,
) -> PolicyLoss:
    """Computes −A log π, without ratio or clipping (REINFORCE; RLOO, arXiv 2402.14740)."""
    del old_logprobs, bounds
    return PolicyLoss(-advantage[..., None] * jnp.where(mask, logprobs, 0.0), jnp.zeros_like(mask))


def _ratio(logprobs: Array, old_logprobs: Array, mask: Array) -> Array:
    """Returns ρ of the tokens, and 1 for padding."""
    return jnp.exp(jnp.where(mask, jnp.clip(logprobs - old_logprobs, -20.0, 20.0), 0.0))


# Of arguments log π, log π_old, A, the tokens' mask, and the bounds.
OBJECTIVES: dict[str, Callable[[Array, Array, Array, Array, Bounds], PolicyLoss]] = {
    "ppo": _ppo,
    "gspo": sequence_policy_loss,
    "cispo": weighted_loss,
    "sapo": soft_gate_loss,
    "reinforce": reinforce_loss,
}
