"""The metrics of a step that only GRPO logs: what one watches while it runs."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mirg_jax.runs.settings import GrpoSettings
from mirg_jax.training.selecting import Chosen, Pool
from mirg_jax.types import Scalars


def scalars(grpo: GrpoSettings, pool: Pool, chosen: Chosen, statistics: Scalars) -> Scalars:
    """Returns a step's metrics by name; means are over all groups that were sampled.

    Args:
      grpo: the GRPO settings.
      pool: the groups.
      chosen: those of them that were learned from.
      statistics: of the updates.
    """
    facts, reward = pool.facts, pool.rewards["reward"]
    parts = {name: value.mean() for name, value in pool.rewards.items()}
    found = {
        "reward": parts.pop("reward"),
        **{f"reward_{name}": value for name, value in parts.items()},
        **statistics,
        # Of the policy that sampled, in nats a token: the mean of −log π over what it drew.
        "entropy": -facts.logprobs.sum() / max(facts.lengths.sum(), 1),
        "completion_length": facts.lengths.mean(),
        "cut_fraction": facts.cut.mean(),
        "reward_spread": pool.spread.mean(),
        "zero_spread_fraction": pool.zero_spread.mean(),
    }
    if grpo.selects:
        found |= {
            "used_fraction": chosen.used.mean(),
            "below_gate_fraction": 1 - chosen.above_gate.mean(),
            "left_over": len(chosen.used) - chosen.used.sum(),
            "rounds": pool.rounds,
        }
    found |= by_task("task_reward", reward, pool.tasks)
    if "image" in pool.rewards:
        found |= by_task("task_image", pool.rewards["image"], pool.tasks)
    return found


def by_task(name: str, values: Float[np.ndarray, "B G"], tasks: Sequence[str]) -> Scalars:
    """Returns the mean of each task that there are groups of, as NAME/TASK."""
    named = np.array(tasks)
    return {f"{name}/{task}": values[named == task].mean() for task in sorted(set(tasks))}
