"""The jitted programs of a recipe's step with abstract arguments; no arrays are allocated."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from mirg_jax import sharding
from mirg_jax.data.batching import PackedBatch, Shapes
from mirg_jax.inference import rows as inference_rows
from mirg_jax.models import lora, qwen2_vl
from mirg_jax.models.config import PUBLISHED, ModelConfig
from mirg_jax.models.layers import Precision
from mirg_jax.models.options import ModelOptions
from mirg_jax.runs import checks, engines
from mirg_jax.runs.devices import sampling_mesh, training_mesh
from mirg_jax.runs.loading import with_shardings
from mirg_jax.runs.settings import Settings
from mirg_jax.runs.train_state import init_state, split_trainable, state_shardings
from mirg_jax.sampling.pool import make_feeding
from mirg_jax.sampling.sampler import SamplingConfig, make_sampler
from mirg_jax.sampling.weights import taken_as_they_are, weight_shapes
from mirg_jax.sharding.memory import Accumulator, with_resident
from mirg_jax.training import rollouts, sft
from mirg_jax.training.grpo_programs import Experience, PolicyOptions, Totals, make_gradients
from mirg_jax.training.optimizer import make_apply, make_optimizer
from mirg_jax.types import Images, Rollout


class Program(NamedTuple):
    """A jitted function with the shapes of its arguments."""

    name: str
    mesh: jax.sharding.Mesh
    function: Any
    arguments: tuple  # shapes with shardings
    parts: dict[str, Any]  # all arrays on the devices while it runs, by part
    apart: Any = ()  # those of them that are not arguments


def model_config(path: str) -> ModelConfig:
    """Returns a model's configuration; published models need no download.

    Args:
      path: a published model's hub name, or a folder with a config.json.

    Raises:
      CheckpointError: if the folder has no valid config.json.
    """
    return PUBLISHED[path] if path in PUBLISHED else ModelConfig.from_folder(path)


def _shape(mesh, shape, dtype, *spec) -> jax.ShapeDtypeStruct:
    where = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=where)


def _rows(mesh, *shape, dtype=np.int32) -> jax.ShapeDtypeStruct:
    return _shape(mesh, shape, dtype, sharding.ROWS)


def batch_shapes(shapes: Shapes, rows: int, mesh: jax.sharding.Mesh) -> PackedBatch:
    """Returns the shapes of the largest batch that the allowed sizes permit."""
    text, images = inference_rows.largest_prompts(shapes, rows, mesh)
    return PackedBatch(text, images, _rows(mesh, rows, shapes.lengths[-1], dtype=bool))


class RunShapes(NamedTuple):
    """The abstract arrays of a run, corresponding to those of `training.start`."""

    settings: Settings
    model: ModelConfig
    graph: nnx.GraphDef
    params: nnx.State
    frozen: nnx.State
    state: Any
    layout: Any
    optimizer: Any
    mesh: jax.sharding.Mesh


def run_shapes(settings: Settings, mesh: jax.sharding.Mesh) -> RunShapes:
    """Returns the abstract arrays of a run on a mesh."""
    sizes = model_config(settings.model.path)
    engine = engines.choose(settings.model, sizes, mesh.devices.flat[0]).engine
    options = ModelOptions(settings.model.precision, settings.model.remat, engine)
    graph, params = qwen2_vl.abstract(sizes, options)
    params = with_shardings(params, mesh)
    if settings.lora:
        graph, adapters = lora.attach(graph, params, settings.lora)
        params, frozen = with_shardings(adapters, mesh), params
    else:
        params, frozen = split_trainable(params, settings.freeze)
    optimizer = make_optimizer(settings.optimizer, settings.num_steps)
    layout = state_shardings(params, optimizer, mesh)
    state = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        jax.eval_shape(lambda p: init_state(p, optimizer, 0), params),
        layout,
    )
    return RunShapes(settings, sizes, graph, params, frozen, state, layout, optimizer, mesh)


def _updates(
    run: RunShapes, gradients: Accumulator, outputs, arguments, resident: dict, micro_batches: int
):
    """Yields the two programs that SFT and GRPO share: gradients, and the optimizer's update.

    Args:
      run: the abstract arrays of the run.
      gradients: what accumulates the gradients.
      outputs: shapes of the loss and its statistics.
      arguments: shapes of the gradient function's arguments.
      resident: other arrays on the devices, by part.
      micro_batches: number of micro-batches per step.
    """
    parts = {"weights": (run.params, run.frozen), "optimizer": run.state.opt_state, **resident}
    grads = run.params
    others = run.state.opt_state, resident.get("reference")
    total = (outputs, grads) if micro_batches > 1 else None
    summed = {"gradients": (grads,) * min(micro_batches, 2)}  # the sum so far, and the new ones
    given = total, others, *arguments
    held = resident["batch"] if isinstance(resident["batch"], list) else [resident["batch"]]
    yield Program("gradients", run.mesh, gradients.add, given, parts | summed, held[1:])
    apply = make_apply(run.optimizer, run.layout)
    arguments = run.state, grads, _shape(run.mesh, (), np.float32)
    apart = run.frozen, list(resident.values())
    yield Program("update", run.mesh, apply, arguments, parts | {"gradients": grads}, apart)


def sft_programs(settings: Settings, devices: list) -> Iterator[Program]:
    """Yields the programs of an SFT step."""
    run = run_shapes(settings, training_mesh(settings.devices, devices))
    rows = settings.micro_batch
    batch = batch_shapes(settings.data.shapes, rows, run.mesh)
    gradients = sft.make_gradients(run.graph, run.layout, settings.logprob_chunk)
    scalar = _shape(run.mesh, (), np.float32)
    arguments = run.params, run.frozen, batch, scalar
    micro_batches = -(-settings.batch_size // rows)
    yield from _updates(run, gradients, scalar, arguments, {"batch": batch}, micro_batches)


def visual_shapes(run: RunShapes, images: Images, mesh: jax.sharding.Mesh) -> Any:
    """Returns the shapes that replace images: their visual tokens if the tower is frozen."""
    if not run.settings.tower_is_frozen:
        return images
    B, S, P, _ = images.patches.shape
    width, dtype = run.model.text.hidden_size, run.settings.model.precision.compute
    return _rows(mesh, B, S * P // 4, width, dtype=dtype)


def sampling_program(
    run: RunShapes, batch: PackedBatch, options: SamplingConfig, others: dict
) -> Program:
    """Returns the sampling program of GRPO.

    Args:
      run: the abstract arrays of the run.
      batch: shapes of the prompts on the sampling mesh.
      options: the sampling options.
      others: other arrays on the devices, by part.
    """
    mesh, group = batch.text.tokens.sharding.mesh, options.group
    everything = nnx.merge_state(run.params, run.frozen)
    compute = run.settings.model.precision.compute
    weights = weight_shapes(everything, compute, mesh)
    sampler = make_sampler(run.graph, mesh, np.zeros(run.model.text.vocab_size, bool), options)
    key = jax.eval_shape(lambda: jax.random.key(0)).dtype
    rows, length = batch.text.tokens.shape
    keys = jax.ShapeDtypeStruct(
        (rows, group), key, sharding=NamedSharding(mesh, PartitionSpec(sharding.ROWS))
    )
    text = run.model.text
    heads = (options.slots * sharding.row_parts(mesh) or rows, text.num_kv_heads)
    where = sharding.spec(("rows", "heads"), heads, mesh.shape, sharding.GATHERED)
    tokens = length + group * options.max_tokens
    cache = _shape(
        mesh,
        (*heads, 2 * text.num_layers * tokens * text.head_dim),
        compute,
        *where,
    )
    shared = taken_as_they_are(everything, weights)
    own = {} if shared else weights
    parts = {"sampling weights": own, "batch": batch, "cache": cache, **others}
    resident = others.get("optimizer"), others.get("reference"), None if shared else everything
    arguments = resident, weights, batch.text, batch.images, keys
    return Program("sample", mesh, with_resident(sampler), arguments, parts)


def reference_shapes(run: RunShapes) -> Any:
    """Returns the shapes of the reference policy's copy; none with LoRA, which uses the base."""
    if not run.settings.grpo.beta or run.settings.lora:
        return {}
    return jax.tree.map(
        lambda leaf, dtype: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding),
        run.params,
        qwen2_vl.computed_dtypes(run.params, run.settings.model.precision.compute),
    )


def reference_values(run: RunShapes, logprobs: jax.ShapeDtypeStruct) -> tuple[Any, Any]:
    """Returns the shapes of what an update needs of the reference policy.

    Args:
      run: the abstract arrays of the run.
      logprobs: the shape of the tokens' log-probabilities.

    Returns:
      The values of a micro-batch's tokens, and the output head; None for what isn't needed.
    """
    grpo, text = run.settings.grpo, run.model.text
    if not grpo.beta or grpo.kl != "exact":
        return (logprobs if grpo.beta else None), None
    compute, shape = run.settings.model.precision.compute, (text.hidden_size, text.vocab_size)
    hidden = _rows(run.mesh, *logprobs.shape, text.hidden_size, dtype=compute)
    where = sharding.spec(("embed", "vocab"), shape, run.mesh.shape, sharding.GATHERED)
    return hidden, _shape(run.mesh, shape, compute, *where)


def grpo_programs(settings: Settings, devices: list) -> Iterator[Program]:
    """Yields the programs of a GRPO step: sampling, gradients, update.

    The reference policy's forward pass is omitted: it needs less memory than the gradients.

    Raises:
      ConfigError: if the rows can't be divided over the devices.
    """
    grpo, rows = settings.grpo, settings.micro_batch
    mesh = training_mesh(settings.devices, devices)
    there = sampling_mesh(settings.devices, mesh)
    row_parts, sampling_parts = sharding.row_parts(mesh), sharding.row_parts(there)
    checks.rows(settings, row_parts=row_parts, sampling_parts=sampling_parts, shares=1, processes=1)
    run = run_shapes(settings, mesh)
    reference = reference_shapes(run)
    batch = batch_shapes(settings.data.shapes, rows, mesh)
    visual = visual_shapes(run, batch.images, mesh)
    L = grpo.completion_lengths[-1]
    make = functools.partial(_rows, mesh, rows, grpo.group)
    rollout = Rollout(make(L), make(L, dtype=bool), make(L, dtype=np.float32))
    values, head = reference_values(run, make(L, dtype=np.float32))
    experience = Experience(batch.text, visual, rollout, make(dtype=np.float32), values)
    resident = {
        "weights": (run.params, run.frozen),
        "optimizer": run.state.opt_state,
        "reference": reference,
    }
    prompts = batch_shapes(settings.data.shapes, settings.sampled_prompts, there)
    prompts = prompts._replace(images=visual_shapes(run, prompts.images, there))
    sampling = rollouts.sampling_config(grpo, sampling_parts, stops=(0, 1))
    yield sampling_program(run, prompts, sampling, resident)
    forbidden = np.zeros(run.model.text.vocab_size, bool)
    options = PolicyOptions(run.graph, forbidden, grpo, settings.logprob_chunk)
    scalar = _shape(mesh, (), np.float32)
    micro_batches = settings.batch_size // rows
    others = {"batch": [experience] * micro_batches}
    others["reference"] = reference
    if head is not None:
        others["reference head"] = head
    gradients = make_gradients(run.layout, options)
    arguments = run.params, run.frozen, experience, Totals(scalar, scalar), head
    names = ("kl", "logprob_diff", "clip_fraction")
    outputs = scalar, dict.fromkeys(names, scalar)
    yield from _updates(run, gradients, outputs, arguments, others, micro_batches)


def inference_programs(settings: Settings, devices: list) -> Iterator[Program]:
    """Yields the program of inference, as in `scripts/evaluate.py`."""
    whole = training_mesh(settings.devices, devices)
    mesh = sampling_mesh(settings.devices, whole)
    compute = settings.model.precision.compute
    model = dataclasses.replace(settings.model, precision=Precision(compute, compute))
    run = run_shapes(dataclasses.replace(settings, model=model), mesh)
    weights = weight_shapes(nnx.merge_state(run.params, run.frozen), compute, mesh)
    evaluation, shapes = settings.evaluation, settings.data.shapes
    sampling = SamplingConfig(max_tokens=evaluation.max_tokens, stop_tokens=(0, 1))
    forbidden = np.zeros(run.model.text.vocab_size, bool)
    feeding = make_feeding(run.graph, mesh, forbidden, sampling, run.model.text.num_kv_heads)
    memory = inference_rows.memory_of(devices[0])
    rows = inference_rows.at_once(
        evaluation.batch_size, memory, feeding, weights, (), shapes, whole, mesh
    )
    text, images = inference_rows.largest_prompts(shapes, rows, mesh)
    pool = feeding.open.eval_shape(weights, text, images)
    more = _shape(mesh, (), bool)
    arguments = (), weights, pool, text, images, _rows(mesh, rows), more
    parts = {"sampling weights": weights, "batch": (text, images), "slots": pool}
    yield Program("sample", mesh, feeding.feed, arguments, parts)


PROGRAMS = {"sft": sft_programs, "grpo": grpo_programs, "inference": inference_programs}


def programs(settings: Settings, devices: list) -> Iterator[Program]:
    """Returns the programs of the recipe's stage."""
    return PROGRAMS[settings.stage](settings, devices)
