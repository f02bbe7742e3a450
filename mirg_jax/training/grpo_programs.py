"""The computations of a GRPO step as pure functions: loss, reference values, rewards."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from mirg_jax import sharding
from mirg_jax.rl import advantages as adv
from mirg_jax.rl import objective, rewards
from mirg_jax.rl.logprobs import exact_kl, token_logprobs
from mirg_jax.rl.rewards import Answers, Targets
from mirg_jax.runs import engines
from mirg_jax.runs.settings import GrpoSettings
from mirg_jax.runs.train_state import TrainState
from mirg_jax.sharding.memory import Accumulator
from mirg_jax.types import Images, Rollout, Text

# Reference values for the KL penalty: log-probabilities of tokens, or hidden states for exact KL.
Reference = Float[Array, "B G L"] | Float[Array, "B G L M"]


def statistics(grpo: GrpoSettings) -> tuple[str, ...]:
    """Returns the names of an update's statistics, besides its loss."""
    names = ("kl", "logprob_diff", "clip_fraction")
    return (*names, "truncated_fraction") if grpo.importance_cap else names


class Experience(NamedTuple):
    """The inputs of an update for one micro-batch of prompts and their groups."""

    prompt: Text
    images: Images | Float[Array, "B V W"]  # visual tokens if the vision tower is frozen
    rollout: Rollout
    advantages: Float[Array, "B G"]
    reference: Reference | None  # None before it is computed, and without a KL penalty
    before: Float[Array, "B G L"] | None = None  # log π_old, if `takes_policy_before`


class Totals(NamedTuple):
    """Numbers of completions and completion tokens in the whole step, for means over the step."""

    sequences: Float[Array, ""]
    tokens: Float[Array, ""]


class Judgement(NamedTuple):
    """Rewards and advantages of a batch of groups."""

    rewards: dict[str, Float[Array, "B G"]]  # by name; "reward" is the weighted sum of the others
    advantages: Float[Array, "B G"]  # complete, unless `make_step_scaling` returns a function
    difficulty: Float[Array, "B 1"] | None  # weights of the groups, if they are weighed by it
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
    """Computes a micro-batch's contribution to the loss −J (equation 5, or as `grpo.objective`).

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
    hidden, head = model.with_head(hidden)
    logprobs = token_logprobs(hidden, head, rollout.tokens, **logits)

    old, weights, truncated = rollout.logprobs, 1.0, None
    if cap := grpo.importance_cap:
        old = experience.before if grpo.takes_policy_before else jax.lax.stop_gradient(logprobs)
        weights = objective.importance_weights(old, rollout.logprobs, rollout.mask, cap)
        truncated = (weights >= cap) & rollout.mask
    policy = objective.OBJECTIVES[grpo.objective](
        logprobs, old, experience.advantages, rollout.mask, grpo.bounds
    )
    if grpo.beta == 0:
        kl = jnp.zeros_like(logprobs)
    elif grpo.kl == "exact":
        kl = exact_kl(hidden, head, experience.reference, reference_head, **logits)
    else:
        kl = objective.kl_estimate(logprobs, experience.reference, grpo.kl, grpo.kl_clamp)

    def mean(values, kind):
        counts = {**totals._asdict(), "longest": grpo.max_tokens}
        return objective.reduce_tokens(values, rollout.mask, kind, **counts)

    value = mean(weights * policy.loss + grpo.beta * kl, grpo.normalisation)
    told = [kl, jnp.abs(logprobs - rollout.logprobs), policy.clipped.astype(jnp.float32)]
    told += [] if truncated is None else [truncated.astype(jnp.float32)]
    names = statistics(grpo)
    return value, {name: mean(each, "token") for name, each in zip(names, told, strict=True)}


def make_gradients(layout: TrainState, options: PolicyOptions) -> Accumulator:
    """Creates what accumulates `loss`, statistics and gradients over micro-batches.

    Args:
      layout: shardings of the training state; gradients are sharded like the parameters.
      options: how log-probabilities are computed.
    """
    by_rows = True, False, False
    return Accumulator(
        sharding.value_and_grad(functools.partial(loss, options=options), by_rows, has_aux=True),
        out_shardings=((layout.step, layout.step), layout.params),
        compiler_options=engines.gradient_options(layout.step.mesh),
    )


def policy_values(
    params: nnx.State,
    prompt: Text,
    images: Images | Float[Array, "B V W"],
    rollout: Rollout,
    *,
    options: PolicyOptions,
) -> Float[Array, "B G L"]:
    """Computes log π of completions' tokens by the learner."""
    model = nnx.merge(options.graph, params)
    hidden = model.completion_hidden(prompt, images, rollout)
    return token_logprobs(hidden, model.head(), rollout.tokens, **options.logits())


def reference_values(
    params: nnx.State,
    prompt: Text,
    images: Images | Float[Array, "B V W"],
    rollout: Rollout,
    *,
    options: PolicyOptions,
) -> Reference:
    """Computes the reference policy's values for the KL penalty."""
    if options.grpo.kl == "exact":
        model = nnx.merge(options.graph, params)
        return model.completion_hidden(prompt, images, rollout)
    return policy_values(params, prompt, images, rollout, options=options)


def make_judge(grpo: GrpoSettings, mesh: Mesh) -> Callable[[Answers, Targets], Judgement]:
    """Creates the jitted function that computes rewards and advantages from answers and targets.

    Advantages are sharded by rows; rewards are replicated.
    """
    functions = rewards.resolve(grpo.rewards, grpo.reward_options)
    rows, replicated = sharding.by_rows(mesh), sharding.replicated(mesh)
    scale, epsilon = grpo.advantage_scale, grpo.advantage_epsilon

    def judge(answers: Answers, targets: Targets) -> Judgement:
        reward, parts = rewards.total(functions, answers, targets)
        equal = adv.zero_spread(reward)
        if scale == "gdpo":
            weights = {name: weight for name, (_, weight) in functions.items()}
            advantages = adv.decoupled_advantages(parts, weights, epsilon=epsilon)
            counted = [adv.zero_spread(parts[name]) for name, weight in weights.items() if weight]
            equal = jnp.all(jnp.stack(counted), axis=0)
        else:
            within = "none" if scale in adv.OVER_STEP else scale
            advantages = adv.group_advantages(reward, scale=within, epsilon=epsilon)
        difficulty = None
        if grpo.difficulty_weight:
            difficulty = adv.difficulty_weights(rewards.object_reward(answers, targets))
        return Judgement({"reward": reward, **parts}, advantages, difficulty, equal)

    # A reward of a user's own that fails does so now, and not after the first completions.
    few = (2, grpo.group), grpo.max_objects, functions
    jax.eval_shape(lambda: judge(*rewards.nothing_said(*few)))
    return jax.jit(judge, out_shardings=Judgement(replicated, rows, rows, replicated))


def make_step_scaling(
    grpo: GrpoSettings, mesh: Mesh
) -> Callable[..., list[Float[Array, "B G"]]] | None:
    """Creates the jitted function that completes the advantages of all of a step's parts.

    Returns:
      A function `complete(judgements, used=None)`, where `used` says which groups the step learns
      from, None for all; its results are sharded by rows. None if the judgements' are complete.
    """
    if grpo.advantage_scale not in adv.OVER_STEP and not grpo.difficulty_weight:
        return None
    options = {"scale": grpo.advantage_scale, "epsilon": grpo.advantage_epsilon}

    def complete(
        parts: Sequence[Judgement], used: Bool[Array, " B"] | None = None
    ) -> list[Float[Array, "b G"]]:
        advantages = jnp.concatenate([part.advantages for part in parts])
        if grpo.advantage_scale in adv.OVER_STEP:
            reward = jnp.concatenate([part.rewards["reward"] for part in parts])
            advantages = adv.scale_over_step(advantages, reward, used=used, **options)
        if grpo.difficulty_weight:
            advantages = advantages * jnp.concatenate([part.difficulty for part in parts])
        return jnp.split(advantages, len(parts))

    return jax.jit(complete, out_shardings=sharding.by_rows(mesh))
