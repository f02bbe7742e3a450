"""The programs of a GRPO step, as pure functions: loss, what the reference says, rewards."""

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
from mirg_jax.sharding.memory import accumulating
from mirg_jax.types import Images, Rollout, Text

# What the KL penalty needs of the reference policy: log-probs, or hidden states for the exact one.
Reference = Float[Array, "B G L"] | Float[Array, "B G L M"]


class Experience(NamedTuple):
    """What the update needs of one micro-batch of prompts and their sampled groups."""

    prompt: Text
    images: Images | Float[Array, "B V M"]  # where the tower is frozen, their visual tokens
    rollout: Rollout
    advantages: Float[Array, "B G"]
    reference: Reference | None  # None until it is computed, and without a KL penalty


class Totals(NamedTuple):
    """Completions and completion tokens of the whole step, for its means."""

    sequences: Float[Array, ""]
    tokens: Float[Array, ""]


class Judgement(NamedTuple):
    """The rewards of a batch of groups; "reward" is the weighted sum of the others."""

    rewards: dict[str, Float[Array, "B G"]]
    advantages: Float[Array, "B G"]
    zero_spread: Bool[Array, " B"]


class PolicyOptions(NamedTuple):
    """How log-probs of a policy are computed.

    Attributes:
      graph: of the model that the parameters belong to.
      forbidden: tokens that are never drawn.
      chunk: tokens whose logits exist at a time.
    """

    graph: nnx.GraphDef
    forbidden: Bool[np.ndarray, " vocab"]
    grpo: GrpoSettings
    chunk: int

    def logits(self) -> dict:
        """The options of `rl.logprobs`: of the very distribution that is sampled from."""
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
    """This micro-batch's share of −J of equation 5, and of the step's statistics."""
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


def make_gradients(layout: TrainState, options: PolicyOptions) -> Callable:
    """`loss`, statistics and gradients, as `accumulating`; laid out as the parameters are."""
    return accumulating(
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
    """What the KL penalty needs of the reference policy."""
    model = nnx.merge(options.graph, params)
    hidden = model.completion_hidden(prompt, images, rollout)
    if options.grpo.kl == "exact":
        return hidden
    return token_logprobs(hidden, model.head(), rollout.tokens, **options.logits())


def make_judge(grpo: GrpoSettings, mesh: Mesh) -> Callable[[Answers, Targets], Judgement]:
    """Makes the jitted function from parsed answers and true objects to rewards and advantages."""
    functions = rewards.resolve(grpo.rewards)
    rows, everywhere = sharding.by_rows(mesh), sharding.replicated(mesh)

    def judge(answers: Answers, targets: Targets) -> Judgement:
        reward, parts = rewards.total(functions, answers, targets)
        advantages = group_advantages(
            reward, scale=grpo.advantage_scale, epsilon=grpo.advantage_epsilon
        )
        return Judgement({"reward": reward, **parts}, advantages, zero_spread(reward))

    return jax.jit(judge, out_shardings=Judgement(everywhere, rows, everywhere))
