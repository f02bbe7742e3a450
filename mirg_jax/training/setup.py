"""What SFT and GRPO begin with: devices, model, optimizer, data, and the state to resume."""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from ml_collections import ConfigDict
from transformers import AutoTokenizer

from mirg_jax import defaults, sharding
from mirg_jax.data.batching import Shapes
from mirg_jax.data.examples import Example, read_examples
from mirg_jax.data.pipeline import Preparer, RejectedLog, batches, position
from mirg_jax.data.prompts import PromptStyle, Tokenizer
from mirg_jax.errors import CheckpointError, ConfigError
from mirg_jax.models import lora
from mirg_jax.models.flash import ENGINES
from mirg_jax.models.layers import REMAT, Precision
from mirg_jax.runs import adapters, loading, run_folder
from mirg_jax.runs.checkpoints import Checkpoints, write_model_folder
from mirg_jax.runs.train_state import TrainState, init_state, split_trainable, state_shardings
from mirg_jax.sharding import processes
from mirg_jax.training.optimizer import make_optimizer


class Run(NamedTuple):
    """A run ready to take its next step."""

    model: loading.Model  # as it was when the run began
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh
    shapes: Shapes
    optimizer: optax.GradientTransformation
    graph: nnx.GraphDef  # of the trained and frozen parameters together
    state: TrainState
    layout: TrainState  # where the state lies: a sharding for each array
    frozen: nnx.State
    data: grain.DatasetIterator
    share: sharding.Share
    rejected: RejectedLog
    checkpoints: Checkpoints
    first_step: int

    def without_start(self) -> "Run":
        """Lets go of the parameters that the run started from, which a resumed one needn't hold."""
        return self._replace(model=self.model._replace(params=None))


def config_of(source: str) -> ConfigDict:
    """The config that a run was trained with; the defaults for a Hugging Face model."""
    config = defaults.grpo()
    if run := run_folder.find_run(source):
        own = run[0] / "config.json"
        if own.exists():
            config = ConfigDict(config.to_dict() | json.loads(own.read_text()))
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


def how(config: ConfigDict, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """How the model is computed on this mesh: what `config.model` says, as `Qwen2VL` takes it.

    Raises:
      ConfigError: for an unknown name.
    """
    if config.model.remat not in REMAT:
        raise ConfigError(f"model.remat={config.model.remat!r} is none of {', '.join(REMAT)}")
    attention = config.model.attention
    if attention == "auto":
        attention = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}.get(
            mesh.devices.flat[0].platform, "xla"
        )
    if attention not in ("xla", *ENGINES):
        raise ConfigError(f"model.attention={attention!r} is none of auto, xla, splash, cudnn")
    return {
        "precision": Precision(
            jnp.dtype(config.model.compute_dtype), jnp.dtype(config.model.param_dtype)
        ),
        "remat": config.model.remat,
        "attention": attention,
    }


def sampling_mesh(config: ConfigDict, mesh: jax.sharding.Mesh) -> jax.sharding.Mesh:
    """Raises ConfigError if the devices can't be divided as `config.sampling` says."""
    try:
        return sharding.sampling_mesh(mesh, config.sampling.tensor)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def for_sampling(config: ConfigDict) -> tuple[jax.sharding.Mesh, dict[str, Any]]:
    """The mesh and `how` of a model that only answers: laid out and kept as it is computed."""
    mesh = sampling_mesh(config, use_devices(config))
    options = how(config, mesh)
    compute = options["precision"].compute
    return mesh, options | {"precision": Precision(compute, compute)}


def lora_of(config: ConfigDict) -> lora.Lora | None:
    """The adapters of `config.lora`; None if all weights are trained.

    Raises:
      ConfigError: for values that can't work.
    """
    if config.lora.rank == 0:
        return None
    try:
        return lora.Lora(**config.lora.to_dict() | {"targets": tuple(config.lora.targets)})
    except ValueError as error:
        raise ConfigError(f"config.lora: {error}") from None


def tower_is_frozen(config: ConfigDict) -> bool:
    """Whether the images' visual tokens are the same for every policy of the run."""
    return not config.lora.tower if config.lora.rank else "visual" in config.freeze


def trainable(
    model: loading.Model, config: ConfigDict, mesh: jax.sharding.Mesh
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The graph of what is run, its parameters to be trained, and those that stay as they are."""
    adapted = lora_of(config)
    if adapted is None:
        return model.graph, *split_trainable(model.params, tuple(config.freeze))
    graph, shapes = lora.attach(model.graph, model.params, adapted)
    where = sharding.parameter_shardings(shapes, mesh)
    params = jax.jit(lambda: lora.init(shapes, config.seed), out_shardings=where)()
    return graph, params, model.params


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


def claim_base(config: ConfigDict, workdir: pathlib.Path) -> str:
    """What the run starts from. A LoRA run's folder is made to remember it, and does on resuming.

    Raises:
      UserError: for a config that can't work, or isn't the one that the folder's run has.
    """
    source, adapted = config.init_from or config.model.path, lora_of(config)
    workdir.mkdir(parents=True, exist_ok=True)
    wanted = None
    if adapted is not None:
        wanted = adapters.Record(run_folder.exactly(source), config.model.param_dtype, adapted)
    record = adapters.claim(workdir, wanted, resumes=run_folder.find_run(workdir) is not None)
    return record.base if record else source


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
    if not config.data.train_json:
        raise ConfigError("data.train_json is not set: name the file of the training rows")
    examples, bad = read_examples(config.data.train_json)
    source = claim_base(config, workdir)
    rejected = RejectedLog(workdir / "rejected.jsonl", write=first)
    for row in bad:
        rejected.add(row, told=True)
    model = loading.load_model(source, mesh, **how(config, mesh))
    tokenizer = load_tokenizer(model.folder)
    if first:
        write_model_folder(workdir, model, config)

    graph, params, frozen = trainable(model, config, mesh)
    optimizer = make_optimizer(config.optimizer, config.num_steps * updates_per_step)
    layout = state_shardings(params, optimizer, mesh)
    # The parameters themselves stay where they are: a program would return copies of them.
    begin = jax.jit(
        lambda p: init_state(p, optimizer, config.seed)._replace(params=None),
        out_shardings=layout._replace(params=None),
    )
    state = begin(params)._replace(params=params)

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
    checkpoints = Checkpoints(workdir, **config.checkpoint)
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
        graph=graph,
        state=state,
        layout=layout,
        frozen=frozen,
        data=data,
        share=share,
        rejected=rejected,
        checkpoints=checkpoints,
        first_step=first_step,
    )
