"""What SFT and GRPO begin with: devices, model, optimizer, data, and the state to resume."""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict
from transformers import AutoTokenizer

from mirg_jax import defaults, processes, sharding
from mirg_jax.data.batching import Shapes
from mirg_jax.data.examples import Example, read_examples
from mirg_jax.data.pipeline import Preparer, RejectedLog, batches, position
from mirg_jax.data.prompts import PromptStyle, Tokenizer
from mirg_jax.errors import CheckpointError, ConfigError
from mirg_jax.models.layers import Precision
from mirg_jax.training import checkpoint
from mirg_jax.training.state import TrainState, init_state, make_optimizer, split_trainable


class Run(NamedTuple):
    """A run ready to take its next step."""

    model: checkpoint.Model
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh
    shapes: Shapes
    optimizer: optax.GradientTransformation
    state: TrainState
    frozen: nnx.State
    data: grain.DatasetIterator
    share: sharding.Share
    rejected: RejectedLog
    checkpoints: checkpoint.Checkpoints
    first_step: int


def config_of(source: str) -> ConfigDict:
    """The config that a run was trained with; the defaults for a Hugging Face model."""
    config = defaults.grpo()
    if run := checkpoint.find_run(source):
        saved = run[0] / "config.json"
        if saved.exists():
            config = ConfigDict(config.to_dict() | json.loads(saved.read_text()))
    return config


def use_devices(config: ConfigDict) -> jax.sharding.Mesh:
    """The mesh of `config.mesh`; call before anything else touches JAX's devices.

    Raises:
      ConfigError: if the mesh doesn't fit the devices, or other processes are not to be reached.
    """
    if config.cpu_devices not in (0, jax.config.jax_num_cpu_devices):
        jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    processes.start()
    try:
        mesh = sharding.make_mesh(**config.mesh)
        sharding.data_share(mesh)
        return mesh
    except ValueError as error:
        raise ConfigError(str(error)) from None


def precision(config: ConfigDict) -> Precision:
    """The dtypes of `config.model`."""
    return Precision(jnp.dtype(config.model.compute_dtype), jnp.dtype(config.model.param_dtype))


def load_tokenizer(folder: str | pathlib.Path) -> Tokenizer:
    """The tokenizer of a model's folder.

    Raises:
      CheckpointError: if the folder has none.
    """
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{folder}: no tokenizer ({reason}); copy tokenizer.json beside config.json"
        ) from None


def shapes_of(config: ConfigDict) -> Shapes:
    """The sizes that arrays may take."""
    return Shapes(**{name: tuple(sizes) for name, sizes in config.data.shapes.items()})


def make_preparer(config: ConfigDict, tokenizer: Tokenizer, *, with_response: bool) -> Preparer:
    """The reader and encoder of single examples, as configured."""
    return Preparer(
        image_root=config.data.image_root,
        tokenizer=tokenizer,
        style=PromptStyle(**config.prompt),
        shapes=shapes_of(config),
        min_pixels=config.data.min_pixels,
        max_pixels=config.data.max_pixels,
        with_response=with_response,
    )


def start(
    config: ConfigDict,
    workdir: pathlib.Path,
    *,
    with_response: bool,
    keep: Callable[[Example], bool] = lambda _: True,
    updates_per_step: int = 1,
) -> Run:
    """Prepares a run, and resumes it if `workdir` holds a checkpoint.

    Args:
      keep: which examples this kind of training can use.
      updates_per_step: optimizer steps that the schedule counts for each step of the run.

    Raises:
      UserError: for a config, data set or checkpoint that can't be used.
    """
    mesh = use_devices(config)
    share, first = sharding.data_share(mesh), processes.is_first()
    if config.batch_size % share.count:
        raise ConfigError(
            f"batch_size={config.batch_size} can't be divided over {share.count} shares of the "
            "data, one for each process's rows; make it a multiple"
        )
    source = config.init_from or config.model.path
    model = checkpoint.load_model(
        source, mesh, precision=precision(config), remat=config.model.remat
    )
    tokenizer = load_tokenizer(model.folder)
    workdir.mkdir(parents=True, exist_ok=True)
    if first:
        checkpoint.write_model_folder(workdir, model, config)

    params, frozen = split_trainable(model.params, tuple(config.freeze))
    optimizer = make_optimizer(config.optimizer, config.num_steps * updates_per_step)
    state = jax.jit(lambda p: init_state(p, optimizer, config.seed))(params)

    rejected = RejectedLog(workdir / "rejected.jsonl", write=first)
    examples, bad = read_examples(config.data.train_json)
    for row in bad:
        rejected.add(row, told=True)
    preparer = make_preparer(config, tokenizer, with_response=with_response)
    data = batches(
        [example for example in examples if keep(example)],
        preparer,
        rejected,
        batch_size=config.batch_size // share.count,
        seed=config.seed,
        share=share.index,
        shares=share.count,
        threads=config.data.threads,
    )
    checkpoints = checkpoint.Checkpoints(workdir, **config.checkpoint)
    first_step = checkpoints.latest() or 0
    if first_step:
        state, frozen, data_state = checkpoints.restore(state, frozen)
        data.set_state(position(data_state, *share))
    if first:
        if first_step:
            print(f"resumed from step {first_step}", flush=True)
        print(f"{len(examples)} examples, {len(rejected)} rows left out", flush=True)
    return Run(
        model=model,
        tokenizer=tokenizer,
        mesh=mesh,
        shapes=preparer.shapes,
        optimizer=optimizer,
        state=state,
        frozen=frozen,
        data=data,
        share=share,
        rejected=rejected,
        checkpoints=checkpoints,
        first_step=first_step,
    )


def scalar(value: float, mesh: jax.sharding.Mesh) -> Any:
    """A float32 on every device, put there explicitly, as the transfer guard asks."""
    return sharding.place_everywhere(np.float32(value), mesh)
