"""The programs of a recipe's step, and the shapes they are called with; nothing is allocated."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from mirg_jax import sharding
from mirg_jax.data.batching import PackedBatch
from mirg_jax.data.images import PATCH_BYTES
from mirg_jax.errors import ConfigError
from mirg_jax.models import lora, qwen2_vl
from mirg_jax.models.config import PUBLISHED, ModelConfig
from mirg_jax.runs.loading import with_shardings
from mirg_jax.runs.train_state import init_state, split_trainable, state_shardings
from mirg_jax.sampling.sampler import SamplingConfig, make_sampler
from mirg_jax.sampling.weights import taken_as_they_are, weight_shapes
from mirg_jax.sharding.memory import with_resident
from mirg_jax.training import grpo, rollouts, setup, sft
from mirg_jax.training.optimizer import make_apply, make_optimizer
from mirg_jax.types import Images, Rollout, Text


class Program(NamedTuple):
    """A jitted function with the shapes it is called with."""

    name: str
    mesh: jax.sharding.Mesh
    function: Any
    arguments: tuple  # shapes with shardings
    parts: dict[str, Any]  # what is on the devices meanwhile, arguments or not, by part
    apart: Any = ()  # those of them that aren't arguments


def bytes_per_device(tree: Any) -> int:
    """What one device holds of arrays that are described by shape, dtype and sharding."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def model_config(config: ConfigDict) -> ModelConfig:
    """The sizes of the recipe's model; published ones need no download.

    Raises:
      CheckpointError: for a folder without a config.json.
    """
    if config.model.path in PUBLISHED:
        return PUBLISHED[config.model.path]
    return ModelConfig.from_folder(config.model.path)


def _shape(mesh, shape, dtype, *spec) -> jax.ShapeDtypeStruct:
    where = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=where)


def _rows(mesh, *shape, dtype=np.int32) -> jax.ShapeDtypeStruct:
    return _shape(mesh, shape, dtype, sharding.ROWS)


def batch_shapes(config: ConfigDict, rows: int, mesh: jax.sharding.Mesh) -> PackedBatch:
    """The largest batch that the recipe's shapes allow."""
    T, S, P = (config.data.shapes[name][-1] for name in ("lengths", "slots", "patches"))
    make = functools.partial(_rows, mesh, rows)
    return PackedBatch(
        Text(make(T), make(T, 3), make(T), make(T)),
        Images(make(S, P, PATCH_BYTES, dtype=np.uint8), make(S, P, 2)),
        make(T, dtype=bool),
    )


class Setting(NamedTuple):
    """The shapes of a run, as `training.setup.start` makes its arrays."""

    model: ModelConfig
    graph: nnx.GraphDef
    params: nnx.State
    frozen: nnx.State
    state: Any
    layout: Any
    optimizer: Any
    mesh: jax.sharding.Mesh


def _mesh(config: ConfigDict, devices: list) -> jax.sharding.Mesh:
    """Raises ConfigError if the recipe's mesh isn't one of these devices."""
    try:
        return sharding.make_mesh(**config.mesh, devices=devices)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def setting(config: ConfigDict, devices: list) -> Setting:
    mesh = _mesh(config, devices)
    sizes = model_config(config)
    graph, params = qwen2_vl.abstract(sizes, **setup.how(config, mesh))
    params = with_shardings(params, mesh)
    if adapted := setup.lora_of(config):
        graph, adapters = lora.attach(graph, params, adapted)
        params, frozen = with_shardings(adapters, mesh), params
    else:
        params, frozen = split_trainable(params, tuple(config.freeze))
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    layout = state_shardings(params, optimizer, mesh)
    state = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        jax.eval_shape(lambda p: init_state(p, optimizer, 0), params),
        layout,
    )
    return Setting(sizes, graph, params, frozen, state, layout, optimizer, mesh)


def _updates(run: Setting, gradients, outputs, arguments, resident: dict, micro_batches: int):
    """The two programs that both trainings end in: gradients, and the optimizer's step.

    Args:
      outputs: of the loss and its statistics.
      resident: what lies on the devices besides, by part.
    """
    parts = {"weights": (run.params, run.frozen), "optimizer": run.state.opt_state, **resident}
    grads = run.params
    others = run.state.opt_state, resident.get("reference")
    total = (outputs, grads) if micro_batches > 1 else None
    waiting = {"gradients": (grads,) * min(micro_batches, 2)}  # those summed so far, and new ones
    given = total, others, *arguments
    held = resident["batch"] if isinstance(resident["batch"], list) else [resident["batch"]]
    yield Program("gradients", run.mesh, gradients, given, parts | waiting, held[1:])
    apply = make_apply(run.optimizer, run.layout)
    arguments = run.state, grads, _shape(run.mesh, (), np.float32)
    apart = run.frozen, list(resident.values())
    yield Program("update", run.mesh, apply, arguments, parts | {"gradients": grads}, apart)


def sft_programs(config: ConfigDict, devices: list) -> Iterator[Program]:
    """A step of SFT."""
    run = setting(config, devices)
    rows = config.rows_per_micro_batch
    batch = batch_shapes(config, rows, run.mesh)
    gradients = sft.make_gradients(run.graph, run.layout, config.logprob_chunk)
    scalar = _shape(run.mesh, (), np.float32)
    arguments = run.params, run.frozen, batch, scalar
    micro_batches = -(-config.batch_size // rows)
    yield from _updates(run, gradients, scalar, arguments, {"batch": batch}, micro_batches)


def visual_shapes(config: ConfigDict, run: Setting, images: Images, mesh: Any) -> Any:
    """What stands for the images in sampling and loss: their visual tokens if they are frozen."""
    if not setup.tower_is_frozen(config):
        return images
    B, S, P, _ = images.patches.shape
    width, dtype = run.model.text.hidden_size, config.model.compute_dtype
    return _rows(mesh, B, S * P // 4, width, dtype=dtype)


def sampling_program(
    config: ConfigDict, run: Setting, batch: PackedBatch, options: SamplingConfig, others: dict
) -> Program:
    """The sampler with its weights, as GRPO and evaluation run it.

    Args:
      batch: its prompts, on the mesh that it runs on.
    """
    mesh, group = batch.text.tokens.sharding.mesh, options.group
    everything = nnx.merge_state(run.params, run.frozen)
    weights = weight_shapes(everything, config.model.compute_dtype, mesh)
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
        config.model.compute_dtype,
        *where,
    )
    shared = taken_as_they_are(everything, weights)
    own = {} if others and shared else weights
    parts = {"sampling weights": own, "batch": batch, "cache": cache, **others}
    resident = others.get("optimizer"), others.get("reference"), None if shared else everything
    arguments = resident, weights, batch.text, batch.images, keys
    return Program("sample", mesh, with_resident(sampler), arguments, parts)


def reference_shapes(config: ConfigDict, run: Setting) -> Any:
    """What the reference policy has of its own; with adapters, the frozen base is it."""
    if not config.grpo.beta or setup.lora_of(config):
        return {}
    return jax.tree.map(
        lambda leaf, dtype: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding),
        run.params,
        qwen2_vl.computed_dtypes(run.params, config.model.compute_dtype),
    )


def grpo_programs(config: ConfigDict, devices: list) -> Iterator[Program]:
    """A step of GRPO: sampling, gradients, update.

    The reference's pass beside them is the forward half of the gradients', and needs less.
    """
    run, settings = setting(config, devices), config.grpo
    mesh, rows = run.mesh, config.prompts_per_micro_batch
    reference = reference_shapes(config, run)
    batch = batch_shapes(config, rows, mesh)
    visual = visual_shapes(config, run, batch.images, mesh)
    L = settings.completion_lengths[-1]
    make = functools.partial(_rows, mesh, rows, settings.group)
    rollout = Rollout(make(L), make(L, dtype=bool), make(L, dtype=np.float32))
    values = make(L, dtype=np.float32)
    experience = grpo.Experience(batch.text, visual, rollout, make(dtype=np.float32), values)
    resident = {
        "weights": (run.params, run.frozen),
        "optimizer": run.state.opt_state,
        "reference": reference,
    }
    there = setup.sampling_mesh(config, mesh)
    prompts = batch_shapes(config, rollouts.prompts_a_call(config), there)
    prompts = prompts._replace(images=visual_shapes(config, run, prompts.images, there))
    how = rollouts.sampling_config(config, sharding.row_parts(there), stops=(0, 1))
    yield sampling_program(config, run, prompts, how, resident)
    options = {
        "graph": run.graph,
        "forbidden": np.zeros(run.model.text.vocab_size, bool),
        "config": settings,
        "chunk": config.logprob_chunk,
    }
    scalar = _shape(mesh, (), np.float32)
    micro_batches = config.batch_size // rows
    others = {"batch": [experience] * micro_batches}
    others["reference"] = reference
    gradients = grpo.make_gradients(run.layout, **options)
    arguments = run.params, run.frozen, experience, grpo.Totals(scalar, scalar), None
    names = ("kl", "logprob_diff", "clip_fraction")
    outputs = scalar, dict.fromkeys(names, scalar)
    yield from _updates(run, gradients, outputs, arguments, others, micro_batches)


def inference_programs(config: ConfigDict, devices: list) -> Iterator[Program]:
    """Answering questions, as `scripts/evaluate.py` does."""
    config = ConfigDict(config.to_dict())
    config.model.param_dtype = config.model.compute_dtype
    mesh = setup.sampling_mesh(config, _mesh(config, devices))
    config.mesh.update(data=mesh.shape["data"], fsdp=1, tensor=mesh.shape["tensor"])
    run = setting(config, devices)
    rows = sharding.whole_rows(config.evaluation.batch_size, mesh)
    how = SamplingConfig(max_tokens=config.evaluation.max_tokens, stop_tokens=(0, 1))
    yield sampling_program(config, run, batch_shapes(config, rows, run.mesh), how, {})


def programs(config: ConfigDict, devices: list) -> Iterator[Program]:
    """The programs of whatever the recipe is for."""
    if "grpo" in config:
        yield from grpo_programs(config, devices)
    elif "rows_per_micro_batch" in config:
        yield from sft_programs(config, devices)
    else:
        yield from inference_programs(config, devices)
