"""Planned memory of a GRPO update on another machine, in the shared and in the repeated form.

The shared form computes prompt and images once per group; in the usual, repeated form, each
completion is a row with its own prompt and images.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from mirg_jax import sharding
from mirg_jax.planning import machines, plans, programs
from mirg_jax.planning import shapes as shapes_of
from mirg_jax.rl import objective
from mirg_jax.rl.logprobs import token_logprobs
from mirg_jax.runs.devices import training_mesh
from mirg_jax.runs.settings import GrpoSettings, Settings
from mirg_jax.sharding.memory import Accumulator


def last_logprobs(model, batch, length: int, **options):
    """Log-probs [rows, length] of the completions that end whole rows [prompt | completion]."""
    hidden = model.hidden(batch.text, model.visual(batch.images))
    hidden = hidden[:, -length - 1 : -1]  # the hidden states that predict the completion
    return token_logprobs(hidden, model.head(), batch.text.tokens[:, -length:], **options)


def repeated_loss(
    params, frozen, batch, old, advantages, reference, *, graph, grpo: GrpoSettings, chunk: int
):
    """Equation 5 on whole rows [prompt | completion], the completion last."""
    rows, length = old.shape
    model = nnx.merge(graph, params, frozen)
    options = {"temperature": grpo.temperature, "chunk": chunk}
    logprobs = last_logprobs(model, batch, length, **options)[:, None]
    policy = objective.policy_loss(logprobs, old[:, None], advantages)
    kl = objective.kl_estimate(logprobs, reference[:, None], grpo.kl, grpo.kl_clamp)
    mask = batch.labels[:, None, -length:]
    return objective.reduce_tokens(
        policy.loss + grpo.beta * kl, mask, grpo.normalisation, sequences=rows, tokens=1.0
    )


def repeated_program(settings: Settings, devices: list, rows: int) -> programs.Program:
    """Loss and gradients of `rows` completions, each in a row of its own."""
    run = shapes_of.run_shapes(settings, training_mesh(settings.devices, devices))
    grpo, shapes = settings.grpo, settings.data.shapes
    length = grpo.completion_lengths[-1]
    shapes = dataclasses.replace(shapes, lengths=(shapes.lengths[-1] + length,))
    batch = shapes_of.batch_shapes(shapes, rows, run.mesh)

    def make(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding.by_rows(run.mesh))

    options = {"graph": run.graph, "grpo": grpo, "chunk": settings.logprob_chunk}
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=run.layout.step)
    gradients = Accumulator(
        jax.value_and_grad(functools.partial(repeated_loss, **options)),
        out_shardings=(run.layout.step, run.layout.params),
    )
    given = batch, make(rows, length), make(rows, 1), make(rows, length)
    reference = shapes_of.reference_shapes(run)
    # Gradients are summed where a step has several micro-batches.
    several = rows < settings.batch_size * grpo.group
    total = (scalar, run.params) if several else None
    arguments = total, (run.state.opt_state, reference), run.params, run.frozen
    parts = {
        "weights": (run.params, run.frozen),
        "optimizer": run.state.opt_state,
        "reference": reference,
        "gradients": (run.params,) * (1 + several),
        "batch": given,
    }
    return programs.Program("gradients", run.mesh, gradients.add, (*arguments, *given), parts)


def shared_program(settings: Settings, devices: list, prompts: int) -> programs.Program:
    """Loss and gradients of `prompts` prompts, each with its group of completions."""
    settings = dataclasses.replace(
        settings,
        micro_batch=prompts,
        batch_size=-(-settings.batch_size // prompts) * prompts,
        grpo=dataclasses.replace(settings.grpo, prompts=0),
    )
    found = programs.grpo_programs(settings, devices)
    return next(program for program in found if program.name == "gradients")


def compare(
    settings: Settings, machine: machines.Machine, say: Callable[[str], object], most: int = 64
) -> dict:
    """Doubles the micro-batch of both forms until it doesn't fit.

    Args:
      say: is told each result in a line.
      most: completions a device, at which to stop.

    Returns:
      The figures of both forms as JSON values.
    """
    devices = machine.devices()
    settings = plans.with_attention_of(settings, machine, say)
    memory = machine.kind.memory * machines.GIB
    row_parts = sharding.row_parts(training_mesh(settings.devices, devices))
    group = settings.grpo.group
    found = {"machine": machine.name, "group": group, "jax": jax.__version__}
    forms = {"shared": (shared_program, group), "repeated": (repeated_program, 1)}
    for form, (make, each) in forms.items():
        found[form] = []
        rows = 1
        while rows * each <= most:
            report = plans.measure(make(settings, devices, rows * row_parts))
            fits = plans.fits(report, memory)
            peak = max(report.total, report.compiler)
            row = {
                "completions_a_device": rows * each,
                "peak": peak,
                "activations": report.parts.get("activations", 0),
                "fits": fits,
            } | ({"problem": report.problem} if report.problem else {})
            found[form].append(row)
            told = report.problem or f"{peak / machines.GIB:.1f} GiB"
            say(f"{form}: {rows * each} completions a device, {told}")
            if not fits:
                break
            rows *= 2
    return found
