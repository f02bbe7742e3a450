"""The arrays of a run as shapes, dtypes and shardings; none is allocated."""

import functools
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
from mirg_jax.models.config import ModelConfig
from mirg_jax.models.options import ModelOptions
from mirg_jax.models.sizes import PUBLISHED
from mirg_jax.runs import engines
from mirg_jax.runs.loading import with_shardings
from mirg_jax.runs.settings import Settings
from mirg_jax.runs.train_state import init_state, split_trainable, state_shardings
from mirg_jax.training.grpo_programs import Experience
from mirg_jax.training.optimizer import make_optimizer
from mirg_jax.types import Images, Rollout


def model_config(path: str) -> ModelConfig:
    """Returns a model's configuration; published models need no download.

    Args:
      path: a published model's hub name, or a folder with a config.json.

    Raises:
      CheckpointError: if the folder has no valid config.json.
    """
    return PUBLISHED[path] if path in PUBLISHED else ModelConfig.from_folder(path)


def array(mesh, shape, dtype, *spec) -> jax.ShapeDtypeStruct:
    """Returns the shape of an array that is sharded as `spec` says."""
    where = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=where)


def by_rows(mesh, *shape, dtype=np.int32) -> jax.ShapeDtypeStruct:
    """Returns the shape of an array whose first axis is divided over the devices."""
    return array(mesh, shape, dtype, sharding.ROWS)


def batch_shapes(shapes: Shapes, rows: int, mesh: jax.sharding.Mesh) -> PackedBatch:
    """Returns the shapes of the largest batch that the allowed sizes permit."""
    text, images = inference_rows.largest_prompts(shapes, rows, mesh)
    return PackedBatch(text, images, by_rows(mesh, rows, shapes.lengths[-1], dtype=bool))


class RunShapes(NamedTuple):
    """The abstract arrays of a run, corresponding to those of `training.start`."""

    settings: Settings
    model: ModelConfig
    model_graph: nnx.GraphDef  # of the model without adapters
    graph: nnx.GraphDef
    params: nnx.State
    frozen: nnx.State
    state: Any
    layout: Any
    optimizer: Any
    mesh: jax.sharding.Mesh

    @property
    def everything(self) -> nnx.State:
        """All parameters, trained and frozen."""
        return nnx.merge_state(self.params, self.frozen)


def run_shapes(settings: Settings, mesh: jax.sharding.Mesh) -> RunShapes:
    """Returns the abstract arrays of a run on a mesh."""
    sizes = model_config(settings.model.path)
    engine = engines.choose(settings.model, sizes, mesh.devices.flat[0]).engine
    options = ModelOptions(settings.model.precision, settings.model.remat, engine)
    model_graph, params = qwen2_vl.abstract(sizes, options)
    params, graph = with_shardings(params, mesh), model_graph
    if settings.lora:
        graph, adapters = lora.attach(graph, params, settings.lora)
        params, frozen = with_shardings(adapters, mesh), params
    else:
        params, frozen = split_trainable(params, settings.freeze)
    optimizer = make_optimizer(settings.optimizer, settings.num_steps)
    layout = state_shardings(params, optimizer, mesh, on_host=settings.optimizer.on_host)
    state = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        jax.eval_shape(lambda p: init_state(p, optimizer, 0), params),
        layout,
    )
    return RunShapes(
        settings, sizes, model_graph, graph, params, frozen, state, layout, optimizer, mesh
    )


# GRPO ---------------------------------------------------------------------------------------------


def visual_shapes(run: RunShapes, images: Images, mesh: jax.sharding.Mesh) -> Any:
    """Returns the shapes that replace images: their visual tokens if the tower is frozen."""
    if not run.settings.tower_is_frozen:
        return images
    B, S, P, _ = images.patches.shape
    width, dtype = run.model.vision.token_dim, run.settings.model.precision.compute
    return by_rows(mesh, B, S * P // 4, width, dtype=dtype)


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
    hidden = by_rows(run.mesh, *logprobs.shape, text.hidden_size, dtype=compute)
    where = sharding.spec(("embed", "vocab"), shape, run.mesh.shape, sharding.GATHERED)
    return hidden, array(run.mesh, shape, compute, *where)


def experience_shapes(run: RunShapes, rows: int) -> tuple[Experience, Any]:
    """Returns the shapes of `rows` prompts' experience, and of the reference's head if needed."""
    settings = run.settings
    batch = batch_shapes(settings.data.shapes, rows, run.mesh)
    visual = visual_shapes(run, batch.images, run.mesh)
    L = settings.grpo.completion_lengths[-1]
    make = functools.partial(by_rows, run.mesh, rows, settings.grpo.group)
    rollout = Rollout(make(L), make(L, dtype=bool), make(L, dtype=np.float32))
    logprobs = make(L, dtype=np.float32)
    values, head = reference_values(run, logprobs)
    before = logprobs if settings.grpo.takes_policy_before else None
    advantages = make(dtype=np.float32)
    return Experience(batch.text, visual, rollout, advantages, values, before), head


def pool_shapes(run: RunShapes) -> list[Experience]:
    """Returns the shapes of what a step has sampled before the last call of its last round.

    Without a pool these are none: then a step's calls are as large as its experiences.
    """
    settings, grpo = run.settings, run.settings.grpo
    if grpo.pool == grpo.max_rounds == 1:
        return []
    prompts = settings.sampled_prompts
    calls = settings.examples_at_once * grpo.max_rounds // prompts
    experience, _ = experience_shapes(run, prompts)
    return [experience._replace(reference=None, before=None)] * (calls - 1)
