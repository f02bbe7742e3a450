"""Planned memory of a GRPO update on another machine, in the shared and in the repeated form.

The shared form computes prompt and images once per group; in the usual, repeated form, each
completion is a row with its own prompt and images.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from mirg_jax import sharding
from mirg_jax.planning import machines, plans, programs
from mirg_jax.rl import objective
from mirg_jax.rl.logprobs import token_logprobs
from mirg_jax.sharding.memory import accumulating


def last_logprobs(model, batch, length: int, **options):
    """Log-probs [rows, length] of the completions that end whole rows [prompt | completion]."""
    hidden = model.hidden(batch.text, model.visual(batch.images))
    hidden = hidden[:, -length - 1 : -1]  # the hidden states that predict the completion
    return token_logprobs(hidden, model.head(), batch.text.tokens[:, -length:], **options)


def repeated_loss(params, frozen, batch, old, advantages, reference, *, graph, config, chunk):
    """Equation 5 on whole rows [prompt | completion], the completion last."""
    settings, (rows, length) = config.grpo, old.shape
    model = nnx.merge(graph, params, frozen)
    options = {"temperature": settings.temperature, "chunk": chunk}
    logprobs = last_logprobs(model, batch, length, **options)[:, None]
    policy = objective.policy_loss(logprobs, old[:, None], advantages)
    kl = objective.kl_estimate(logprobs, reference[:, None], settings.kl, settings.kl_clamp)
    mask = batch.labels[:, None, -length:]
    return objective.reduce_tokens(
        policy.loss + settings.beta * kl, mask, settings.normalisation, sequences=rows, tokens=1.0
    )


def repeated_program(config: ConfigDict, devices: list, rows: int) -> programs.Program:
    """Loss and gradients of so many completions, each in a row of its own."""
    run = programs.setting(config, devices)
    wider = ConfigDict(config.to_dict())
    length = config.grpo.completion_lengths[-1]
    wider.data.shapes.lengths = (config.data.shapes.lengths[-1] + length,)
    batch = programs.batch_shapes(wider, rows, run.mesh)

    def make(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding.by_rows(run.mesh))

    options = {"graph": run.graph, "config": config, "chunk": config.logprob_chunk}
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=run.layout.step)
    gradients = accumulating(
        jax.value_and_grad(functools.partial(repeated_loss, **options)),
        out_shardings=(run.layout.step, run.layout.params),
    )
    given = batch, make(rows, length), make(rows, 1), make(rows, length)
    reference = programs.reference_shapes(config, run)
    # Gradients are summed if a step has several micro-batches.
    several = rows < config.batch_size * config.grpo.group
    total = (scalar, run.params) if several else None
    arguments = total, (run.state.opt_state, reference), run.params, run.frozen
    parts = {
        "weights": (run.params, run.frozen),
        "optimizer": run.state.opt_state,
        "reference": reference,
        "gradients": (run.params,) * (1 + several),
        "batch": given,
    }
    return programs.Program("gradients", run.mesh, gradients, (*arguments, *given), parts)


def shared_program(config: ConfigDict, devices: list, prompts: int) -> programs.Program:
    config = ConfigDict(config.to_dict())
    config.prompts_per_micro_batch = config.sampling.prompts = prompts
    config.batch_size = max(config.batch_size, prompts)
    return next(p for p in programs.grpo_programs(config, devices) if p.name == "gradients")


def compare(
    config: ConfigDict, machine: machines.Machine, say: Callable[[str], object], most: int = 64
) -> dict:
    """Doubles the micro-batch of both forms until it doesn't fit.

    Args:
      most: completions a device, at which to stop.
    """
    devices = machine.devices()
    plans.choose_attention(config, machine, say)
    memory = machine.kind.memory * machines.GIB
    ways = sharding.row_parts(sharding.make_mesh(**config.mesh, devices=devices))
    group = config.grpo.group
    found = {"machine": machine.name, "group": group, "jax": jax.__version__}
    forms = {"shared": (shared_program, group), "repeated": (repeated_program, 1)}
    for form, (make, each) in forms.items():
        found[form] = []
        rows = 1
        while rows * each <= most:
            report = plans.measure(make(config, devices, rows * ways))
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
