"""Which of the sampled groups are learned from, and in which order.

Axes: B prompts, G completions per prompt. These functions run on the host, in float64: all
processes have the same rewards, so they choose the same groups.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

ORDERS = ("sampled", "reward")


def reward_spread(rewards: Float[np.ndarray, "B G"]) -> Float[np.ndarray, " B"]:
    """Computes the standard deviation of each group's rewards; exactly 0 if they are all equal."""
    spread = rewards.astype(np.float64).std(axis=-1)
    return np.where(rewards.max(axis=-1) == rewards.min(axis=-1), 0.0, spread)


def threshold(gate: Sequence[float], step: int, num_steps: int) -> float | None:
    """Returns the spread that a step's groups must exceed; None if all may stay.

    Args:
      gate: the thresholds, each for an equal part of the run.
      step: number of steps taken before.
      num_steps: number of steps of the whole run.
    """
    if not gate:
        return None
    return gate[min(step * len(gate) // max(num_steps, 1), len(gate) - 1)]


def above(spread: Float[np.ndarray, " B"], bound: float | None) -> Int[np.ndarray, " K"]:
    """Returns the numbers of the groups with a `reward_spread` above `bound`; None: of all."""
    if bound is None:
        return np.arange(len(spread))
    return np.flatnonzero(spread > bound)


def choose(
    rewards: Float[np.ndarray, "B G"],
    spread: Float[np.ndarray, " B"],
    bound: float | None,
    size: int,
    order: str = "sampled",
) -> Int[np.ndarray, " K"]:
    """Chooses the groups to learn from.

    Of the groups above `bound`, "sampled" takes the first `size` in the order given (as in DAPO's
    dynamic sampling, arXiv 2503.14476). "reward" puts them in order of falling mean reward, the
    easiest first (MG-Thinker, arXiv 2609.37374); if they are more than `size`, this order is
    divided into `size` bands and the middle of each is taken.

    Args:
      rewards: rewards of the completions.
      spread: `reward_spread` of the groups.
      bound: the spread that a group's rewards must exceed; None: any.
      size: number of groups to take, at most.
      order: "sampled" or "reward".

    Returns:
      The numbers of the groups, in the order in which they are learned from.

    Raises:
      ValueError: for another `order`.
    """
    if order not in ORDERS:
        raise ValueError(f"order {order!r} is none of {', '.join(ORDERS)}")
    kept = above(spread, bound)
    if order == "sampled":
        return kept[:size]
    means = rewards[kept].astype(np.float64).mean(axis=-1)
    kept = kept[np.argsort(-means, kind="stable")]
    taken = min(size, len(kept))
    return kept[(2 * np.arange(taken) + 1) * len(kept) // max(2 * taken, 1)]


def mini_batches(chosen: Int[np.ndarray, " K"], count: int) -> list[Int[np.ndarray, " _"]]:
    """Divides chosen groups into `count` parts in their order, as equal as can be."""
    return np.array_split(chosen, count)
