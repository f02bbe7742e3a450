"""Loading of models from runs, checkpoints, Hugging Face folders or the hub.

A model can be given as a run's folder, one of its checkpoints, RUN/best for the checkpoint that was
best on held-out rows, a Hugging Face folder, or a hub name. A LoRA run's checkpoints contain only
adapters; to load its model, they are merged into the base that its lora.json names.
"""

import contextlib
import functools
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from mirg_jax import sharding
from mirg_jax.errors import CheckpointError
from mirg_jax.files import places
from mirg_jax.files.copies import copied
from mirg_jax.models import lora
from mirg_jax.models.config import ModelConfig
from mirg_jax.models.layers import FLOAT32, Precision
from mirg_jax.models.options import DEFAULT, ModelOptions
from mirg_jax.models.qwen2_vl import abstract
from mirg_jax.runs import adapters, hub, origin, run_folder
from mirg_jax.runs.run_folder import SavedStep
from mirg_jax.weights import hf, orbax_files


class Model(NamedTuple):
    """A model with its parameters."""

    config: ModelConfig
    graph: nnx.GraphDef
    params: nnx.State
    folder: pathlib.Path  # has config.json and the tokenizer


def with_shardings(state: nnx.State, mesh: jax.sharding.Mesh) -> nnx.State:
    """Returns the shapes and dtypes of parameters with their shardings on the mesh."""
    shardings = sharding.parameter_shardings(state, mesh)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        state,
        shardings,
    )


def model_folder(source: str | places.Place, *, weights: bool = True) -> pathlib.Path:
    """Returns the folder with a model's config.json and tokenizer, downloading it if necessary.

    Of a model in a store it is a copy on a disk, without the arrays of a run.

    Args:
      source: a run's folder, a checkpoint, a Hugging Face folder or a hub name.
      weights: whether those of a model on the hub are wanted too.

    Raises:
      CheckpointError: if it is neither a folder with a model nor available on the hub.
    """
    saved = run_folder.find_run(source)
    if places.is_url(source):
        copy = copied(epath.Path(saved.model_folder if saved else source))
        if not (copy / "config.json").is_file():
            raise CheckpointError(
                f"{source}: no config.json and no checkpoints there; give a run, a checkpoint or a "
                "Hugging Face folder"
            )
        return copy
    if saved:
        return pathlib.Path(saved.model_folder)
    path = pathlib.Path(source)
    if (path / "config.json").is_file():
        if (path / "checkpoints").is_dir():
            raise CheckpointError(
                f"{path}: is a run that has saved no checkpoint yet; wait for its first, or run "
                "its command again"
            )
        return path
    if path.is_file():
        is_inside = (path.parent / "config.json").is_file() or run_folder.find_run(path.parent)
        remedy = f"give {path.parent}" if is_inside else "give one of these, or a hub name"
        raise CheckpointError(
            f"{path}: is a file, where a folder is expected: a run (with checkpoints/), "
            "RUN/checkpoints/STEP, RUN/best, or a Hugging Face folder (config.json, "
            f"tokenizer.json, *.safetensors); {remedy}"
        )
    if path.exists():
        raise CheckpointError(
            f"{path}: no config.json and no checkpoints in this folder; give a run, a checkpoint, "
            "a Hugging Face folder or a hub name"
        )
    return hub.download(str(source), weights=weights)


def model_config(source: str | places.Place) -> ModelConfig:
    """Returns a model's configuration.

    Args:
      source: a run's folder, a checkpoint, a Hugging Face folder or a hub name.

    Raises:
      CheckpointError: if there is no model, or its config.json can't be used.
    """
    folder = model_folder(source)
    return (
        ModelConfig.from_folder(folder) if run_folder.find_run(source) else hf.read_config(folder)
    )


def load_model(
    source: str | places.Place,
    mesh: jax.sharding.Mesh,
    options: ModelOptions = DEFAULT,
) -> Model:
    """Loads a model and places its parameters on the mesh.

    Args:
      source: a run's folder, a checkpoint, a Hugging Face folder or a hub name.
      mesh: the mesh.
      options: how the model is computed.

    Raises:
      CheckpointError: if there is no model, or its tensors don't match its config.json.
    """
    folder, saved = model_folder(source), run_folder.find_run(source)
    config = model_config(source)
    graph, state = abstract(config, options)
    state = with_shardings(state, mesh)
    if saved is None:
        state = hf.load(folder, state, config)
    elif adapters.read(saved.run):
        state = _load_merged(saved, mesh, options.precision)
    else:
        state = run_folder.restore_params(saved.folder, state)
    return Model(config, graph, state, folder)


def open_model(
    source: str | places.Place, *, precision: Precision = FLOAT32
) -> tuple[Model, hf.Read]:
    """Opens a model without loading its parameters.

    Args:
      source: as in `load_model`.
      precision: dtypes of computation and parameters.

    Returns:
      The model, whose `params` are shapes, and the function that reads its parameters.

    Raises:
      CheckpointError: see `load_model`.
    """
    folder, saved = model_folder(source), run_folder.find_run(source)
    config = ModelConfig.from_folder(folder) if saved else hf.read_config(folder)
    graph, state = abstract(config, ModelOptions(precision))
    if saved and adapters.read(saved.run):
        read = _merging_reader(saved)
    elif saved:
        checkpoint = saved.folder
        with run_folder.reading(
            checkpoint, "model", "give the run's own model folder or another checkpoint"
        ):
            run_folder.check_shapes(checkpoint / "params", nnx.to_pure_dict(state))
        read = orbax_files.reader(checkpoint / "params")
    else:
        read = hf.reader(folder, state, config)
    return Model(config, graph, state, folder), read


def stored_dtype(source: str | places.Place) -> str:
    """Returns the dtype that a model's weights are kept in, "bfloat16" or "float32".

    float32 also stands for float16, and for weights of several dtypes. Adapters count as their base
    does, since they were fitted to its values.

    Raises:
      CheckpointError: if there is no model.
    """
    saved = run_folder.find_run(source)
    if saved is None:
        return hf.stored_dtype(model_folder(source))
    if record := adapters.read(saved.run):
        return record.param_dtype
    with run_folder.reading(saved.folder, "model", "give another checkpoint"):
        dtypes = run_folder.dtypes(saved.folder / "params")
    return "bfloat16" if dtypes == {"bfloat16"} else "float32"


def load_adapters(
    source: str | places.Place, mesh: jax.sharding.Mesh
) -> tuple[adapters.Record, ModelConfig, nnx.State]:
    """Loads the adapters of a LoRA run or one of its checkpoints.

    Returns:
      The run's record, the configuration of its model, and the adapters.

    Raises:
      CheckpointError: if `source` is not a LoRA run, or its checkpoint is damaged.
    """
    saved = run_folder.find_run(source)
    record = saved and adapters.read(saved.run)
    if not record:
        raise CheckpointError(f"{source}: not a LoRA run with a checkpoint, so it has no adapters")
    config = ModelConfig.from_folder(model_folder(source))
    _, shapes = lora.attach(*abstract(config), record.lora)
    values = run_folder.restore_params(saved.folder, with_shardings(shapes, mesh))
    return record, config, values


def check_base(source: str | pathlib.Path) -> None:
    """Checks that the base of a LoRA run has the weights that it had in training.

    Args:
      source: a LoRA run's folder or checkpoint. If its base is not on this machine, nothing is
        checked.

    Raises:
      CheckpointError: if it has others.
    """
    saved = run_folder.find_run(source)
    record = saved and adapters.read(saved.run)
    if record and pathlib.Path(record.base).exists():
        _merging_reader(saved)


def _merging_reader(saved: SavedStep) -> hf.Read:
    """Returns a `Read` of a LoRA run's merged parameters, computed slice by slice."""
    mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
    record, config, values = load_adapters(saved.folder, mesh)
    with _base_of(saved, record):
        base, read_base = open_model(record.base)
        if base.config != config:
            raise CheckpointError(f"{record.base} is a model with another config.json")
        _check_base(saved, record, base, read_base, mesh)
    held = {path: np.asarray(leaf.get_value()) for path, leaf in hf.by_path(values).items()}

    def read(path: str, index: hf.Index, out: np.ndarray) -> None:
        layer = path.removesuffix(".kernel")
        if f"{layer}.lora_a" not in held:
            return read_base(path, index, out)
        kernel = np.empty(out.shape, record.param_dtype)
        read_base(path, index, kernel)
        layers, rows, columns = index
        a, b = held[f"{layer}.lora_a"][layers, rows], held[f"{layer}.lora_b"][layers, :, columns]
        out[...] = kernel.astype(np.float32) + record.lora.scale * (a @ b)

    return read


def _check_base(
    saved: SavedStep,
    record: adapters.Record,
    base: Model,
    read_base: hf.Read,
    mesh: jax.sharding.Mesh,
) -> None:
    """Checks that the base of a LoRA run has the weights that it had in training, if recorded.

    Raises:
      CheckpointError: if it has others.
    """
    began, of_base = origin.read(saved.run), run_folder.find_run(record.base)
    if began is None:
        return
    if of_base and adapters.read(of_base.run):
        # Merged slice by slice, the numbers are rounded otherwise than in training. Opening the
        # base has checked its own base.
        if record.base == began.source:
            return
        kept = Precision(jnp.float32, jnp.dtype(record.param_dtype))
        params = load_model(record.base, mesh, ModelOptions(kept)).params
        found = origin.fingerprint(params, mesh)
    else:
        found = origin.fingerprint_of_files(base.params, read_base, record.param_dtype)
    if found != began.weights:
        raise CheckpointError(f"{record.base} has other weights than in its training")


@contextlib.contextmanager
def _base_of(saved: SavedStep, record: adapters.Record) -> Iterator[None]:
    """Adds the run's name to errors from loading its base model."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(
            f"{saved.run}: the base of its adapters can't be loaded ({error}); restore it there, "
            f"or change its path in {adapters.path_in(saved.run)}"
        ) from None


def _load_merged(saved: SavedStep, mesh: jax.sharding.Mesh, precision: Precision):
    """Loads a LoRA run's base and adapters and merges them.

    The base is loaded in the dtype that it had in training, since the adapters were fitted to these
    values. The merged parameters have the dtype of `precision`.
    """
    record, config, values = load_adapters(saved.folder, mesh)
    kept = precision._replace(params=jnp.dtype(record.param_dtype))
    with _base_of(saved, record):
        base = load_model(record.base, mesh, ModelOptions(kept))
        if base.config != config:
            raise CheckpointError(f"{record.base} is a model with another config.json")
        began = origin.read(saved.run)
        if began and began.weights != origin.fingerprint(base.params, mesh):
            raise CheckpointError(f"{record.base} has other weights than in its training")
    merge = functools.partial(lora.merge, lora=record.lora, dtype=precision.params)
    where = sharding.parameter_shardings(base.params, mesh)
    return jax.jit(merge, out_shardings=where)(base.params, values)
