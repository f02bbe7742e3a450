"""Trajectory SFT: cross-entropy on the response's tokens (the paper's stage 1)."""

import functools
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from mirg_jax import sharding
from mirg_jax.data.batching import Item, PackedBatch, Shapes, collate, pack
from mirg_jax.errors import ConfigError
from mirg_jax.rl.logprobs import token_logprobs
from mirg_jax.runs.metrics import Metrics
from mirg_jax.runs.train_state import TrainState
from mirg_jax.sharding import processes
from mirg_jax.sharding.memory import accumulating
from mirg_jax.training import setup
from mirg_jax.training.held_out import HeldOut, load_benchmark
from mirg_jax.training.lifecycle import Lifecycle
from mirg_jax.training.optimizer import make_apply, schedule


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


def micro_batch_rows(items: Sequence[Item], shapes: Shapes, rows: int) -> list[list[list[int]]]:
    """Packs a step's examples into rows, and those into micro-batches of `rows`, longest first."""
    packed = pack(items, shapes)
    packed += [[]] * (-len(packed) % rows)
    return [packed[i : i + rows] for i in range(0, len(packed), rows)]


def micro_batches(items: Sequence[Item], shapes: Shapes, rows: int) -> list[PackedBatch]:
    """The arrays of `micro_batch_rows`, for one process."""
    return [collate(items, part, shapes) for part in micro_batch_rows(items, shapes, rows)]


def make_gradients(graph: nnx.GraphDef, layout: TrainState, chunk: int) -> Callable:
    """`loss` and its gradients, as `accumulating`; laid out as the parameters are."""
    return accumulating(
        jax.value_and_grad(functools.partial(loss, graph=graph, chunk=chunk)),
        out_shardings=(layout.step, layout.params),
    )


def make_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    layout: TrainState,
    chunk: int,
) -> Callable[..., tuple[TrainState, float, float]]:
    """`step(state, frozen, batches) -> (state, loss, gradient's norm)`; the state is given away.

    The micro-batches go to the device one at a time, and what is asked of it comes back: no other
    transfer happens. `count` is the number of label tokens of all processes, where there are
    several.
    """
    gradients = make_gradients(graph, layout, chunk)
    apply = make_apply(optimizer, layout)

    def step(state, frozen, batches, count=None):
        count = count or sum(batch.labels[:, 1:].sum() for batch in batches)
        with jax.set_mesh(mesh), jax.transfer_guard("disallow"):
            count = sharding.place_everywhere(np.float32(count), mesh)
            total = None
            for batch in batches:
                given = state.params, frozen, sharding.place_rows(batch, mesh), count
                total = gradients(total, state.opt_state, *given)
            step_loss, grads = total
            state, norm = apply(state, grads, step_loss)
            return state, *jax.device_get((step_loss, norm))

    return step


def check(config: ConfigDict, mesh: jax.sharding.Mesh) -> int:
    """The rows of a micro-batch that this process lays out.

    Raises:
      ConfigError: if several processes can't divide the rows of a micro-batch.
    """
    rows, parts = config.rows_per_micro_batch, sharding.row_parts(mesh)
    if jax.process_count() > 1 and rows % parts:
        raise ConfigError(
            f"rows_per_micro_batch={rows} can't be divided over {parts} devices of several "
            "processes; make it a multiple, or set config.mesh"
        )
    return rows // sharding.data_share(mesh).count


def train(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Runs or resumes SFT; see `defaults.sft` for the settings."""
    rows = check(config, setup.use_devices(config))
    benchmark = load_benchmark(config)
    run = setup.start(config, workdir, with_response=True).without_start()
    state, frozen = run.state, run.frozen
    take_step = make_step(run.graph, run.optimizer, run.mesh, run.layout, config.logprob_chunk)
    rate = schedule(config.optimizer, config.num_steps)
    metrics = Metrics(
        workdir,
        step=run.first_step,
        num_steps=config.num_steps,
        name="sft",
        write=processes.is_first(),
    )
    life = Lifecycle(run, config)
    held_out = HeldOut(run, config, workdir, benchmark, write=processes.is_first())

    for step in life.steps():
        with metrics.phase("data"):
            items = [item for _, item in next(run.data)]
            batches = life.collate(items, micro_batch_rows(items, run.shapes, rows))
        if life.stopping:
            break
        with metrics.phase("update"):
            state, step_loss, norm = take_step(state, frozen, batches.parts, batches.labels)
            skipped, in_a_row = jax.device_get((state.skipped, state.skipped_in_a_row))
        scores = {}
        if held_out.due(step + 1):
            with metrics.phase("evaluate"):
                scores = held_out.evaluate(step + 1, state, frozen)
        metrics.write(
            step + 1,
            {
                "loss": step_loss,
                "grad_norm": norm,
                "learning_rate": float(np.asarray(rate(step - skipped))),
                "tokens": batches.tokens,
                "padding_fraction": 1 - batches.tokens / batches.cells,
                "rejected": len(run.rejected),
                "skipped": skipped,
                **scores,
            },
            shown=("loss", "learning_rate"),
        )
        with metrics.phase("checkpoint"):  # counted towards the next step
            life.end_step(state, frozen, in_a_row, scores.get("eval_acc"))

    metrics.close()
    life.finish(state, frozen)
