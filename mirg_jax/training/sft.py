"""Trajectory SFT: cross-entropy on the response's tokens (the paper's stage 1)."""

import functools
import pathlib

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from mirg_jax import sharding
from mirg_jax.data.batching import PackedBatch, collate, pack
from mirg_jax.rl.logprobs import token_logprobs
from mirg_jax.training import setup
from mirg_jax.training.metrics import Metrics
from mirg_jax.training.state import add, apply_gradients, schedule


def loss(
    params: nnx.State,
    frozen: nnx.State,
    batch: PackedBatch,
    count: Float[Array, ""],
    *,
    graph: nnx.GraphDef,
    chunk: int,
) -> Float[Array, ""]:
    """Summed −log π of the label tokens over `count`, the label tokens of the whole step.

    So the micro-batches' losses and gradients add up to the step's mean, however it is divided.
    """
    model = nnx.merge(graph, params, frozen)
    hidden = model.hidden(batch.text, model.visual(batch.images))
    logprobs = token_logprobs(hidden[:, :-1], model.head(), batch.text.tokens[:, 1:], chunk=chunk)
    return -(logprobs * batch.labels[:, 1:]).sum() / count


def train(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Runs or resumes SFT; see `defaults.sft` for the settings."""
    run = setup.start(config, workdir, with_response=True)
    state, frozen, graph = run.state, run.frozen, run.model.graph

    gradients = jax.jit(
        jax.value_and_grad(functools.partial(loss, graph=graph, chunk=config.logprob_chunk))
    )
    accumulate = jax.jit(add, donate_argnums=0)
    apply = jax.jit(functools.partial(apply_gradients, optimizer=run.optimizer), donate_argnums=0)
    rate = schedule(config.optimizer, config.num_steps)
    metrics = Metrics(workdir, step=run.first_step, num_steps=config.num_steps, name="sft")

    for step in range(run.first_step, config.num_steps):
        with metrics.phase("data"):
            items = [item for _, item in next(run.data)]
            rows = pack(items, run.shapes)
            size = config.rows_per_micro_batch
            rows += [[]] * (-len(rows) % size)
            micro_batches = [
                collate(items, rows[i : i + size], run.shapes) for i in range(0, len(rows), size)
            ]
            labels = sum(int(batch.labels[:, 1:].sum()) for batch in micro_batches)

        # ---- Device work: nothing but explicit transfers from here on. ----
        with jax.transfer_guard("disallow"), metrics.phase("update"):
            count = setup.scalar(labels, run.mesh)
            total = None
            for batch in micro_batches:
                part = gradients(state.params, frozen, sharding.place_rows(batch, run.mesh), count)
                total = part if total is None else accumulate(total, part)
            step_loss, grads = total
            state, norm = apply(state, grads)
            step_loss, norm = jax.device_get((step_loss, norm))

        with metrics.phase("checkpoint"):
            run.checkpoints.save(state, frozen, run.data.get_state())
        tokens = sum(int((batch.text.segments > 0).sum()) for batch in micro_batches)
        padded = sum(batch.text.segments.size for batch in micro_batches)
        metrics.write(
            step + 1,
            {
                "loss": step_loss,
                "grad_norm": norm,
                "learning_rate": float(np.asarray(rate(step))),
                "tokens": tokens,
                "padding_fraction": 1 - tokens / padded,
                "rejected": len(run.rejected),
            },
            shown=("loss", "learning_rate"),
        )

    run.checkpoints.save(state, frozen, run.data.get_state(), force=True)
    run.checkpoints.close()
    metrics.close()
