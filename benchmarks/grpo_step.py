"""Time of a whole GRPO step: rollout, log-probs by the reference policy, update with AdamW.

Compares the shared and the repeated form of our model with transformers in the order of TRL.
Rewards are not computed: advantages are given. All start from the same weights and prompts; the
reference policy is the initial policy.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from benchmarks.group import SIZE, Size, Task, Work, collate, make_task
from benchmarks.reference import (
    torch_generate,
    torch_inputs,
    torch_logprobs,
    torch_loss,
    torch_model,
)
from benchmarks.shared_prefix import repeated_logprobs, samplers, update_functions
from benchmarks.side_by_side import Phases, Variant
from mirg_jax import sharding
from mirg_jax.runs.train_state import init_state, state_shardings
from mirg_jax.sampling.sampler import sample_keys
from mirg_jax.training.grpo_programs import Experience, reference_values
from mirg_jax.training.optimizer import make_apply, make_optimizer
from mirg_jax.types import Rollout

LEARNING_RATE = 1e-5


class _Shared:
    """Arguments and functions of the shared form."""

    def __init__(self, task: Task):
        batch = collate(task.prompts)
        self.given = sharding.place_rows((batch.text, batch.images), task.mesh)
        self.reference = jax.jit(functools.partial(reference_values, options=task.policy))

    def reference_logprobs(self, params: nnx.State, rollout: Rollout):
        return self.reference(params, *self.given, rollout)

    def update_arguments(self, rollout: Rollout, advantages, reference):
        return (Experience(*self.given, rollout, advantages, reference),)


class _Repeated:
    """Of the repeated form: rows are prompts with completions, the completion's tokens put in."""

    def __init__(self, task: Task):
        self.rows = sharding.place_rows(collate(task.rows), task.mesh)
        self.reference = jax.jit(functools.partial(repeated_logprobs, task=task))

    def _batch(self, rollout: Rollout):
        text = self.rows.text
        completion = rollout.tokens.reshape(-1, rollout.tokens.shape[-1])
        tokens = jax.lax.dynamic_update_slice(
            text.tokens, completion, (0, text.tokens.shape[1] - completion.shape[1])
        )
        return self.rows._replace(text=text._replace(tokens=tokens))

    def reference_logprobs(self, params: nnx.State, rollout: Rollout):
        return self.reference(params, self._batch(rollout))

    def update_arguments(self, rollout: Rollout, advantages, reference):
        return self._batch(rollout), rollout.logprobs, advantages, reference


def _our_step(task: Task, form: str, phases: Phases) -> Callable[[], float]:
    """`() -> loss` of one step after another."""
    adamw = dataclasses.replace(
        task.settings.optimizer,
        name="adamw",
        learning_rate=LEARNING_RATE,
        schedule="constant",
        warmup_ratio=0.0,
    )
    optimizer = make_optimizer(adamw, 1000)
    start = task.model.params
    state = jax.jit(lambda p: init_state(p, optimizer, 0))(jax.tree.map(jnp.copy, start))
    apply = make_apply(optimizer, state_shardings(start, optimizer, task.mesh))

    inputs = {"shared": _Shared, "repeated": _Repeated}[form](task)
    sample = samplers(task, task.size.length)[form]
    update = jax.jit(update_functions(task)[form])
    advantages = sharding.place_rows(task.advantages, task.mesh)
    numbers = itertools.count()

    def step():
        nonlocal state
        with phases("rollout", form):
            step_key = jax.random.fold_in(jax.random.key(0), next(numbers))
            keys = sample_keys(step_key, jnp.arange(task.size.prompts), task.size.group)
            rollout = jax.block_until_ready(sample(state.params, keys))
        with phases("reference", form):
            reference = jax.block_until_ready(inputs.reference_logprobs(start, rollout))
        with phases("update", form):
            loss, grads = update(
                state.params, *inputs.update_arguments(rollout, advantages, reference)
            )
            state, _ = jax.block_until_ready(apply(state, grads, loss))
        return float(loss)

    return step


def _torch_step(task: Task, base: str, phases: Phases) -> Callable[[], float]:
    """The same in TRL's order. A group's samples are return sequences of one prompt."""
    policy, start = torch_model(base), torch_model(base)
    adamw = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    _, G, L = task.size[:3]
    prompts = torch_inputs(task.prompts, policy, left=True)
    rows = torch_inputs(task.rows, policy, left=True)  # input_ids are replaced after sampling
    advantages = torch.tensor(task.advantages).reshape(-1, 1)
    beta = task.settings.grpo.beta

    def step():
        with phases("rollout", "transformers"):
            rows["input_ids"] = torch_generate(policy, prompts, G, L)
        with phases("reference", "transformers"), torch.no_grad():
            reference = torch_logprobs(start, rows, L)
        with phases("update", "transformers"):
            adamw.zero_grad()
            logprobs = torch_logprobs(policy, rows, L)
            # With one update per rollout, the policy is the one that sampled.
            loss = torch_loss(logprobs, logprobs.detach(), reference, advantages, beta)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            adamw.step()
        return loss.item()

    return step


def grpo_step(base: str, size: Size = SIZE) -> Iterator[Variant]:
    """One step after another, in each way; the sampled tokens differ between JAX and torch."""
    task = make_task(base, size)
    work, losses = Work(task), {}
    update = work.update()
    phases = Phases(
        {
            "rollout": work.rollout(size.length),
            "reference": {way: flops / 3 for way, flops in update.items()},  # forward pass only
            "update": update,
        }
    )
    steps = {form: _our_step(task, form, phases) for form in ("shared", "repeated")}
    steps["transformers"] = _torch_step(task, base, phases)

    def timed(name):
        return lambda: losses.setdefault(name, []).append(steps[name]())

    yield Variant(
        str(size),
        {name: timed(name) for name in steps},
        work.facts()
        | {
            # In the first step, policy equals reference: the loss is minus the mean advantage.
            "expected_first_loss": -float(np.mean(task.advantages)),
            "first_loss": lambda: {name: values[0] for name, values in losses.items()},
        },
        counted={way: sum(part[way] for part in phases.counted.values()) for way in steps},
        phases=phases,
    )


CASES = {"grpo_step": grpo_step}
