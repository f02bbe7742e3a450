"""Set-up shared by SFT and GRPO: devices, model, optimizer, data, and the state to resume."""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import grain
import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from mirg_jax import sharding
from mirg_jax.data import pipeline
from mirg_jax.data.examples import Example, Rejected, read_examples
from mirg_jax.data.pipeline import Preparer, RejectedLog
from mirg_jax.data.prompts import Tokenizer
from mirg_jax.mig_bench.benchmark import Row, load_benchmark
from mirg_jax.models import lora
from mirg_jax.models.config import ModelConfig
from mirg_jax.runs import adapters, devices, loading, run_folder
from mirg_jax.runs.checkpoints import Checkpoints, write_model_folder
from mirg_jax.runs.settings import Settings, check_rows
from mirg_jax.runs.train_state import TrainState, init_state, split_trainable, state_shardings
from mirg_jax.sharding import processes
from mirg_jax.training.optimizer import make_optimizer


class TrainingRun(NamedTuple):
    """A training run that is ready for its next step."""

    settings: Settings
    workdir: pathlib.Path
    mesh: Mesh
    sampling_mesh: Mesh
    model: ModelConfig
    model_graph: nnx.GraphDef  # of the model without adapters
    initial: nnx.State | None  # parameters at step 0 of the run, also if it is resumed later
    tokenizer: Tokenizer
    graph: nnx.GraphDef  # of trained and frozen parameters together
    state: TrainState
    frozen: nnx.State
    layout: TrainState  # shardings of the state's arrays
    optimizer: optax.GradientTransformation
    data: grain.DatasetIterator
    share: sharding.Share  # the share of the data that this process reads
    rejected: RejectedLog
    benchmark: Sequence[Row]  # held-out rows; empty without evaluation
    checkpoints: Checkpoints
    first_step: int  # number of steps taken before

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes metrics, logs and the model folder."""
        return processes.is_first()


def start(
    settings: Settings,
    workdir: pathlib.Path,
    *,
    with_response: bool,
    refuse: Callable[[Example], str] = lambda _: "",
) -> TrainingRun:
    """Prepares a run, and resumes it if `workdir` contains a checkpoint.

    Args:
      settings: the run's settings.
      workdir: the run's folder.
      with_response: whether examples are encoded with their response (SFT).
      refuse: returns why this kind of training can't use an example, or "" if it can.

    Raises:
      UserError: if a setting, the data or a checkpoint can't be used.
    """
    mesh, sampling_mesh = _start_devices(settings)
    share = sharding.data_share(mesh)
    evaluation = settings.evaluation
    benchmark = load_benchmark(evaluation.benchmark) if evaluation.every else []
    examples, bad_rows = read_examples(settings.data.train_json)
    source = _claim_source(settings, workdir)
    # A new run doesn't inherit the rows that an attempt before it could not use.
    resumes = run_folder.find_run(workdir) is not None
    path, first = workdir / "rejected.jsonl", processes.is_first()
    rejected = RejectedLog(path, write=first, resume=resumes)
    for row in bad_rows:
        rejected.add(row, told=True)

    options = settings.model.options(mesh.devices.flat[0].platform)
    model = loading.load_model(source, mesh, options)
    tokenizer = loading.load_tokenizer(model.folder)
    if processes.is_first():
        write_model_folder(workdir, model, settings.text)
    graph, params, frozen = trainable(model, settings, mesh)
    optimizer = make_optimizer(settings.optimizer, settings.num_steps * settings.updates_per_step)
    layout = state_shardings(params, optimizer, mesh)
    state = _first_state(params, optimizer, layout, settings.seed)

    kept = _usable(examples, refuse, rejected)
    image_root = settings.data.image_root
    preparer = settings.preparer(tokenizer, with_response=with_response, image_root=image_root)
    data = _open_data(settings, kept, preparer, rejected, share)
    checkpoints = Checkpoints(workdir, settings.checkpoint)
    first_step = checkpoints.latest() or 0
    if first_step:
        state, frozen, data_state = checkpoints.restore(state, frozen)
        data.set_state(pipeline.position(data_state, *share))
    _say(first_step, len(examples), len(rejected))
    return TrainingRun(
        settings=settings,
        workdir=workdir,
        mesh=mesh,
        sampling_mesh=sampling_mesh,
        model=model.config,
        model_graph=model.graph,
        initial=model.params,
        tokenizer=tokenizer,
        graph=graph,
        state=state,
        frozen=frozen,
        layout=layout,
        optimizer=optimizer,
        data=data,
        share=share,
        rejected=rejected,
        benchmark=benchmark,
        checkpoints=checkpoints,
        first_step=first_step,
    )


def _usable(
    examples: Sequence[Example], refuse: Callable[[Example], str], rejected: RejectedLog
) -> list[Example]:
    """Returns the examples that this kind of training can use, and lists the others."""
    kept = []
    for example in examples:
        if reason := refuse(example):
            rejected.add(Rejected(example.source, example.id, reason), told=True)
        else:
            kept.append(example)
    return kept


def trainable(
    model: loading.Model, settings: Settings, mesh: Mesh
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Splits a model into trained and frozen parameters, adding adapters for LoRA.

    Returns:
      The graph of all parameters together, the trained parameters, and the frozen ones.
    """
    if settings.lora is None:
        return model.graph, *split_trainable(model.params, settings.freeze)
    graph, shapes = lora.attach(model.graph, model.params, settings.lora)
    where = sharding.parameter_shardings(shapes, mesh)
    params = jax.jit(lambda: lora.init(shapes, settings.seed), out_shardings=where)()
    return graph, params, model.params


def _say(first_step: int, examples: int, rejected: int) -> None:
    """Prints, in one process, what the run starts with."""
    if not processes.is_first():
        return
    if first_step:
        print(f"resumed from step {first_step}", flush=True)
    print(f"{examples} examples, {rejected} rows left out", flush=True)


def _start_devices(settings: Settings) -> tuple[Mesh, Mesh]:
    """Creates the meshes for training and sampling, and checks that batches can be sharded.

    Raises:
      ConfigError: if the meshes don't match the devices or the batch sizes.
    """
    mesh = devices.start(settings.devices)
    sampling_mesh = devices.sampling_mesh(settings.devices, mesh)
    check_rows(
        settings,
        row_parts=sharding.row_parts(mesh),
        sampling_parts=sharding.row_parts(sampling_mesh),
        shares=sharding.data_share(mesh).count,
        processes=jax.process_count(),
    )
    return mesh, sampling_mesh


def _open_data(
    settings: Settings,
    examples: Sequence[Example],
    preparer: Preparer,
    rejected: RejectedLog,
    share: sharding.Share,
) -> grain.DatasetIterator:
    """Opens the iterator of the batches that this process reads."""
    return pipeline.batches(
        examples,
        preparer,
        rejected,
        batch_size=settings.batch_size // share.count,
        seed=settings.seed,
        share=share.index,
        shares=share.count,
        threads=settings.data.threads,
    )


def _first_state(
    params: nnx.State, optimizer: optax.GradientTransformation, layout: TrainState, seed: int
) -> TrainState:
    # The parameters are not passed through the jitted function, which would copy them.
    begin = jax.jit(
        lambda p: init_state(p, optimizer, seed)._replace(params=None),
        out_shardings=layout._replace(params=None),
    )
    return begin(params)._replace(params=params)


def _claim_source(settings: Settings, workdir: pathlib.Path) -> str:
    """Returns the model that the run starts from; a LoRA run records it in its folder.

    A resumed LoRA run starts from the recorded base.

    Raises:
      UserError: if the folder has a run with other adapter settings.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    wanted = None
    if settings.lora is not None:
        dtype = settings.model.precision.params
        base = run_folder.exactly(settings.source)
        wanted = adapters.Record(base, str(dtype), settings.lora)
    record = adapters.claim(workdir, wanted, resumes=run_folder.find_run(workdir) is not None)
    return record.base if record else settings.source
