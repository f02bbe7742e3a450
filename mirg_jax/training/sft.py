"""Trajectory SFT: cross-entropy on response tokens (the paper's stage 1)."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from mirg_jax import sharding
from mirg_jax.data.batching import Item, PackedBatch, Shapes, collate, pack
from mirg_jax.files.places import Place
from mirg_jax.rl.logprobs import token_logprobs
from mirg_jax.runs import engines
from mirg_jax.runs.settings import Settings
from mirg_jax.runs.train_state import TrainState
from mirg_jax.sharding.memory import Accumulator
from mirg_jax.training.loop import Loop, Outcome
from mirg_jax.training.optimizer import make_apply
from mirg_jax.training.speed import sft_operations
from mirg_jax.training.start import claimed, start


def loss(
    params: nnx.State,
    frozen: nnx.State,
    batch: PackedBatch,
    count: Float[Array, ""],
    *,
    graph: nnx.GraphDef,
    chunk: int,
) -> Float[Array, ""]:
    """Computes a micro-batch's contribution to the step's loss, the mean of −log π over labels.

    The sum over this micro-batch is divided by the number of labels in the whole step, so that the
    losses and gradients of micro-batches add up to the step's mean, however it is divided.

    Args:
      params: the trained parameters.
      frozen: the frozen parameters.
      batch: the micro-batch.
      count: number of label tokens in the whole step.
      graph: the model's graph.
      chunk: tokens of each row whose logits are in memory at a time.
    """
    model = nnx.merge(graph, params, frozen)
    hidden = model.hidden(batch.text, model.visual(batch.images))
    hidden, head = model.with_head(hidden)
    logprobs = token_logprobs(hidden[:, :-1], head, batch.text.tokens[:, 1:], chunk=chunk)
    return -(logprobs * batch.labels[:, 1:]).sum() / count


def divide(items: Sequence[Item], shapes: Shapes, rows: int) -> list[list[list[int]]]:
    """Packs a step's examples into rows, and the rows into micro-batches of `rows` rows."""
    packed = pack(items, shapes)
    packed += [[]] * (-len(packed) % rows)
    return [packed[i : i + rows] for i in range(0, len(packed), rows)]


def micro_batches(items: Sequence[Item], shapes: Shapes, rows: int) -> list[PackedBatch]:
    """Creates the arrays of the micro-batches of `divide`, for a single process."""
    return [collate(items, part, shapes) for part in divide(items, shapes, rows)]


def make_gradients(graph: nnx.GraphDef, layout: TrainState, chunk: int) -> Accumulator:
    """Creates what accumulates `loss` and gradients over micro-batches.

    Args:
      graph: the model's graph.
      layout: shardings of the training state; gradients are sharded like the parameters.
      chunk: tokens of each row whose logits are in memory at a time.
    """
    return Accumulator(
        sharding.value_and_grad(functools.partial(loss, graph=graph, chunk=chunk), (True, False)),
        out_shardings=(layout.step, layout.params),
        compiler_options=engines.gradient_options(layout.step.mesh),
    )


def make_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    layout: TrainState,
    chunk: int,
) -> Callable[..., tuple[TrainState, Outcome]]:
    """Creates the training step.

    Micro-batches are copied to the device one at a time, and the outcome is copied back; a transfer
    guard makes any other transfer an error.

    Args:
      graph: the model's graph.
      optimizer: the optimizer.
      mesh: the mesh.
      layout: shardings of the training state.
      chunk: tokens of each row whose logits are in memory at a time.

    Returns:
      A function `step(state, frozen, batches, labels) -> (state, outcome)`, where `labels` is the
      number of label tokens of all processes. The state is donated.
    """
    gradients = make_gradients(graph, layout, chunk)
    apply = make_apply(optimizer, layout)

    def step(
        state: TrainState, frozen: nnx.State, batches: Sequence[PackedBatch], labels: float
    ) -> tuple[TrainState, Outcome]:
        with jax.set_mesh(mesh), jax.transfer_guard("disallow"):
            count = sharding.place_everywhere(np.float32(labels), mesh)
            calls = (
                (state.params, frozen, sharding.place_rows(batch, mesh), count) for batch in batches
            )
            step_loss, grads = gradients.sum(
                sharding.resident(state.opt_state), calls, len(batches)
            )
            state, norm = apply(state, grads, step_loss)
            return state, Outcome.fetch(step_loss, norm, state)

    return step


def train(settings: Settings, workdir: Place) -> None:
    """Runs or resumes SFT training.

    Args:
      settings: see `defaults.sft`.
      workdir: the run's folder.

    Raises:
      UserError: if a setting, the data or a checkpoint can't be used.
    """
    with claimed(settings, workdir):
        run = start(settings, workdir, with_response=True)._replace(initial=None)
        take_step = make_step(
            run.graph, run.optimizer, run.mesh, run.layout, settings.logprob_chunk
        )
        loop = Loop(run, "sft")
        rows = settings.micro_batch // run.share.count
        state = run.state

        shapes = run.settings.data.shapes
        for batches in loop.steps(lambda items: divide(items, shapes, rows)):
            with loop.phase("update"):
                parts = [part.batch for part in batches.parts]
                state, outcome = take_step(state, run.frozen, parts, batches.labels)
            scalars = {
                "tokens": batches.tokens,
                "padding_fraction": 1 - batches.tokens / batches.cells,
            }
            state = loop.end_step(
                state,
                outcome,
                scalars,
                shown=("loss", "learning_rate"),
                tokens=batches.tokens,
                operations=sft_operations(settings, batches.forward),
            )

        loop.finish(state)
