"""Time of GRPO's update and rollout with the images and prompt of a group computed once.

Compared with the repeated form of the same model, and with transformers as used in TRL.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from benchmarks.group import SIZE, Size, Task, Work, collate, make_task
from benchmarks.planned_prefix import last_logprobs
from benchmarks.reference import (
    torch_generate,
    torch_inputs,
    torch_logprobs,
    torch_loss,
    torch_model,
)
from benchmarks.side_by_side import Variant
from mirg_jax import sharding
from mirg_jax.data.batching import PackedBatch
from mirg_jax.models.options import ModelOptions
from mirg_jax.rl import objective
from mirg_jax.runs.loading import load_model
from mirg_jax.sampling.sampler import SamplingConfig, make_sampler, sample_keys
from mirg_jax.training import grpo_programs
from mirg_jax.training.grpo_programs import Experience, Totals
from mirg_jax.types import Rollout


def repeated_logprobs(params, batch: PackedBatch, *, task: Task):
    """Log-probs of all completions, each behind its own copy of the prompt."""
    length, policy = task.size.length, task.policy
    model = nnx.merge(policy.graph, params)
    logprobs = last_logprobs(model, batch, length, **policy.logits())
    return logprobs.reshape(-1, task.size.group, length)


def repeated_loss(params, batch: PackedBatch, old, advantages, reference, *, task: Task):
    """The same loss in the repeated form."""
    grpo = task.settings.grpo
    logprobs = repeated_logprobs(params, batch, task=task)
    policy = objective.policy_loss(logprobs, old, advantages)
    kl = objective.kl_estimate(logprobs, reference, grpo.kl, grpo.kl_clamp)
    mask = jnp.ones(logprobs.shape, bool)
    sizes = {"sequences": mask[..., 0].size, "tokens": mask.size}
    return objective.reduce_tokens(policy.loss + grpo.beta * kl, mask, grpo.normalisation, **sizes)


def update_functions(task: Task) -> dict[str, Callable]:
    """`(params, …) -> (loss, gradients)`, to be jitted.

    The shared form takes an experience, the repeated one a batch of rows, the log-probs of the
    policy that sampled, advantages and the reference's log-probs.
    """
    totals = Totals(*(np.float32(np.prod(task.completions.shape[:n])) for n in (2, 3)))

    def shared(params, experience):
        loss = functools.partial(grpo_programs.loss, options=task.policy)
        (value, _), grads = jax.value_and_grad(loss, has_aux=True)(
            params, nnx.State({}), experience, totals, None
        )
        return value, grads

    repeated = jax.value_and_grad(functools.partial(repeated_loss, task=task))
    return {"shared": shared, "repeated": repeated}


def updates(task: Task, forms: tuple[str, ...] = ("shared", "repeated")):
    """Compiled programs and `() -> (loss, gradients)` of the task's own completions, by form."""
    place = functools.partial(sharding.place_rows, mesh=task.mesh)
    given = {}
    if "shared" in forms:
        prompts = collate(task.prompts)
        ones = np.ones(task.completions.shape, bool)
        experience = Experience(
            *place((prompts.text, prompts.images)),
            place(Rollout(task.completions, ones, task.old)),
            *place((task.advantages, task.reference)),
        )
        given["shared"] = task.model.params, experience
    if "repeated" in forms:
        rows = place((collate(task.rows), task.old, task.advantages, task.reference))
        given["repeated"] = task.model.params, *rows
    functions = update_functions(task)
    compiled = {form: jax.jit(functions[form]).lower(*given[form]).compile() for form in forms}
    return compiled, {
        form: functools.partial(program, *given[form]) for form, program in compiled.items()
    }


def _torch_update(task: Task, base: str):
    """Loss and gradients by whole rows."""
    model = torch_model(base)
    length, beta = task.size.length, task.settings.grpo.beta
    inputs = torch_inputs(task.rows, model, left=True)
    old = torch.tensor(task.old).reshape(-1, length)
    reference = torch.tensor(task.reference).reshape(-1, length)
    advantages = torch.tensor(task.advantages).reshape(-1, 1)

    def run():
        model.zero_grad()
        logprobs = torch_logprobs(model, inputs, length)
        loss = torch_loss(logprobs, old, reference, advantages, beta)
        loss.backward()
        return loss.item()

    return run


def temporary_bytes(compiled: dict) -> dict[str, int]:
    return {name: step.memory_analysis().temp_size_in_bytes for name, step in compiled.items()}


def grpo_update(base: str, size: Size = SIZE) -> Iterator[Variant]:
    """Loss and gradients of one rollout.

    "shared" and "repeated" recompute every layer in the backward pass ("full"), as large models
    must. transformers keeps all activations; so "shared_dots", which keeps the outputs of
    projections, and "shared_none", which keeps everything, are compared with it too.
    """
    task = make_task(base, size)
    compiled, run = updates(task)
    for remat in ("dots", "none"):
        other = task._replace(model=load_model(base, task.mesh, ModelOptions(remat=remat)))
        program, way = updates(other, ("shared",))
        compiled[f"shared_{remat}"], run[f"shared_{remat}"] = program["shared"], way["shared"]
    theirs = _torch_update(task, base)
    losses, work = {}, Work(task)

    def timed(name):
        def way():
            losses[name] = float(jax.block_until_ready(run[name]())[0])

        return way

    def difference():
        """The largest relative difference of a parameter's gradient."""
        pairs = zip(*(jax.tree.leaves(run[n]()[1]) for n in ("shared", "repeated")), strict=True)
        return max(float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) for a, b in pairs)

    ours = ["shared", "shared_dots", "shared_none"]
    yield Variant(
        str(size),
        {name: timed(name) for name in [*ours, "repeated"]}
        | {"transformers": lambda: losses.update(transformers=theirs())},
        work.facts()
        | {
            "temporary_bytes": temporary_bytes(compiled),
            "loss": losses,
            "gradient_difference": difference,
        },
        counted=work.update() | dict.fromkeys(ours, work.update()["shared"]),
        ours=len(ours),
    )


def samplers(task: Task, new: int) -> dict[str, Callable]:
    """`(params, keys [prompts, group]) -> Rollout` of `new` tokens, by form."""
    B, G = task.size[:2]
    graph, forbidden = task.model.graph, task.policy.forbidden
    prompts = collate(task.prompts)
    again = jax.tree.map(lambda x: np.repeat(x, G, axis=0), prompts)
    once, many = (
        sharding.place_rows((batch.text, batch.images), task.mesh) for batch in (prompts, again)
    )
    group, single = (
        make_sampler(graph, task.mesh, forbidden, SamplingConfig(group=n, max_tokens=new))
        for n in (G, 1)
    )

    def repeated(params, keys):
        rollout = single(params, *many, keys.reshape(-1, 1))
        return jax.tree.map(lambda x: x.reshape(B, G, -1), rollout)

    return {"shared": lambda params, keys: group(params, *once, keys), "repeated": repeated}


def rollout(base: str, size: Size = SIZE) -> Iterator[Variant]:
    """Prefill alone (vision included), then whole rollouts; no stop token."""
    task = make_task(base, size)
    keys = sample_keys(jax.random.key(0), jnp.arange(size.prompts), size.group)
    reference = torch_model(base)
    inputs = torch_inputs(task.prompts, reference, left=True)

    for new in (1, size.length):
        sample, tokens = samplers(task, new), {}

        def ours(name, sample=sample, tokens=tokens):
            tokens[name] = jax.device_get(sample[name](task.model.params, keys).tokens)

        yield Variant(
            f"{new} new tokens",
            {
                "shared": functools.partial(ours, "shared"),
                "repeated": functools.partial(ours, "repeated"),
                "transformers": lambda new=new: torch_generate(reference, inputs, size.group, new),
            },
            Work(task).facts()
            | {
                "equal_tokens": lambda tokens=tokens: float(
                    (tokens["shared"] == tokens["repeated"]).mean()
                ),
            },
            counted=Work(task).rollout(new),
            units={"tokens": size.prompts * size.group * new},
        )


CASES = {"grpo_update": grpo_update, "rollout": rollout}
