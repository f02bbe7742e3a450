"""The computations of a GRPO step as pure functions: loss, reference values, rewards."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from mirg_jax import sharding
from mirg_jax.rl import objective, rewards
from mirg_jax.rl.advantages import group_advantages, zero_spread
from mirg_jax.rl.logprobs import exact_kl, token_logprobs
from mirg_jax.rl.rewards import Answers, Targets
from mirg_jax.runs.settings import GrpoSettings
from mirg_jax.runs.train_state import TrainState
from mirg_jax.sharding.memory import Accumulator
from mirg_jax.types import Images, Rollout, Text

# Reference values for the KL penalty: log-probabilities of tokens, or hidden states for exact KL.
Reference = Float[Array, "B G L"] | Float[Array, "B G L M"]


class Experience(NamedTuple):
    """The inputs of an update for one micro-batch of prompts and their groups."""

    prompt: Text
    images: Images | Float[Array, "B V M"]  # visual tokens if the vision tower is frozen
    rollout: Rollout
    advantages: Float[Array, "B G"]
    reference: Reference | None  # None before it is computed, and without a KL penalty


class Totals(NamedTuple):
    """Numbers of completions and completion tokens in the whole step, for means over the step."""

    sequences: Float[Array, ""]
    tokens: Float[Array, ""]


class Judgement(NamedTuple):
    """Rewards and advantages of a batch of groups."""

    rewards: dict[str, Float[Array, "B G"]]  # by name; "reward" is the weighted sum of the others
    advantages: Float[Array, "B G"]
    zero_spread: Bool[Array, " B"]  # groups whose rewards are all equal


class PolicyOptions(NamedTuple):
    """How a policy's log-probabilities are computed.

    Attributes:
      graph: graph of the model that the parameters belong to.
      forbidden: tokens that are never sampled.
      grpo: the GRPO settings.
      chunk: tokens of each row whose logits are in memory at a time.
    """

    graph: nnx.GraphDef
    forbidden: Bool[np.ndarray, " vocab"]
    grpo: GrpoSettings
    chunk: int

    def logits(self) -> dict:
        """Returns the options of `rl.logprobs`, for the distribution that is sampled from."""
        return {
            "temperature": self.grpo.temperature,
            "forbidden": self.forbidden,
            "chunk": self.chunk,
        }


def loss(
    params: nnx.State,
    frozen: nnx.State,
    experience: Experience,
    totals: Totals,
    reference_head: Float[Array, "M vocab"] | None,
    *,
    options: PolicyOptions,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Computes a micro-batch's contribution to the loss −J (equation 5).

    Args:
      params: the trained parameters.
      frozen: the frozen parameters.
      experience: the micro-batch.
      totals: numbers of completions and tokens in the whole step.
      reference_head: the reference policy's output head, for exact KL only.
      options: how log-probabilities are computed.

    Returns:
      The contributions to the step's loss and to its statistics; those of all micro-batches add up.
    """
    grpo, logits = options.grpo, options.logits()
    model = nnx.merge(options.graph, params, frozen)
    rollout = experience.rollout
    hidden = model.completion_hidden(experience.prompt, experience.images, rollout)
    logprobs = token_logprobs(hidden, model.head(), rollout.tokens, **logits)

    policy = objective.policy_loss(
        logprobs,
        rollout.logprobs,
        experience.advantages,
        clip_low=grpo.clip_low,
        clip_high=grpo.clip_high,
    )
    if grpo.beta == 0:
        kl = jnp.zeros_like(logprobs)
    elif grpo.kl == "exact":
        kl = exact_kl(hidden, model.head(), experience.reference, reference_head, **logits)
    else:
        kl = objective.kl_estimate(logprobs, experience.reference, grpo.kl, grpo.kl_clamp)

    def mean(values, kind):
        return objective.reduce_tokens(values, rollout.mask, kind, **totals._asdict())

    value = mean(policy.loss + grpo.beta * kl, grpo.normalisation)
    return value, {
        "kl": mean(kl, "token"),
        "logprob_diff": mean(jnp.abs(logprobs - rollout.logprobs), "token"),
        "clip_fraction": mean(policy.clipped.astype(jnp.float32), "token"),
    }


def make_gradients(layout: TrainState, options: PolicyOptions) -> Accumulator:
    """Creates what accumulates `loss`, statistics and gradients over micro-batches.

    Args:
      layout: shardings of the training state; gradients are sharded like the parameters.
      options: how log-probabilities are computed.
    """
    return Accumulator(
        jax.value_and_grad(functools.partial(loss, options=options), has_aux=True),
        out_shardings=((layout.step, layout.step), layout.params),
    )


def reference_values(
    params: nnx.State,
    prompt: Text,
    images: Images | Float[Array, "B V M"],
    rollout: Rollout,
    *,
    options: PolicyOptions,
) -> Reference:
    """Computes the reference policy's values for the KL penalty."""
    model = nnx.merge(options.graph, params)
    hidden = model.completion_hidden(prompt, images, rollout)
    if options.grpo.kl == "exact":
        return hidden
    return token_logprobs(hidden, model.head(), rollout.tokens, **options.logits())


def make_judge(grpo: GrpoSettings, mesh: Mesh) -> Callable[[Answers, Targets], Judgement]:
    """Creates the jitted function that computes rewards and advantages from answers and targets.

    Advantages are sharded by rows; rewards are replicated.
    """
    functions = rewards.resolve(grpo.rewards)
    rows, replicated = sharding.by_rows(mesh), sharding.replicated(mesh)

    def judge(answers: Answers, targets: Targets) -> Judgement:
        reward, parts = rewards.total(functions, answers, targets)
        advantages = group_advantages(
            reward, scale=grpo.advantage_scale, epsilon=grpo.advantage_epsilon
        )
        return Judgement({"reward": reward, **parts}, advantages, zero_spread(reward))

    return jax.jit(judge, out_shardings=Judgement(replicated, rows, replicated))
