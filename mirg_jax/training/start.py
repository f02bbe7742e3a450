"""What SFT and GRPO begin with: devices, model, optimizer, data, and the state to resume."""

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
from mirg_jax.data.examples import Example, read_examples
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


class Run(NamedTuple):
    """A training run that is ready to take its next step."""

    settings: Settings
    workdir: pathlib.Path
    mesh: Mesh
    sampling_mesh: Mesh
    model: ModelConfig
    model_graph: nnx.GraphDef  # of the model alone, without adapters
    initial: nnx.State | None  # the parameters that the run, not the resumed part of it, began with
    tokenizer: Tokenizer
    graph: nnx.GraphDef  # of the trained and frozen parameters together
    state: TrainState
    frozen: nnx.State
    layout: TrainState  # the sharding of each array of the state
    optimizer: optax.GradientTransformation
    data: grain.DatasetIterator
    share: sharding.Share  # of the data, that this process reads
    rejected: RejectedLog
    benchmark: Sequence[Row]  # held-out rows; none where the run isn't evaluated
    checkpoints: Checkpoints
    first_step: int  # steps taken before

    @property
    def is_first(self) -> bool:
        """Whether this process writes what a run writes once."""
        return processes.is_first()


def start(
    settings: Settings,
    workdir: pathlib.Path,
    *,
    with_response: bool,
    keep: Callable[[Example], bool] = lambda _: True,
) -> Run:
    """Prepares a run, and resumes it if `workdir` holds a checkpoint.

    Args:
      with_response: whether examples are encoded with their response (SFT).
      keep: which examples this kind of training can use.

    Raises:
      UserError: for a setting, data set or checkpoint that can't be used.
    """
    mesh, sampling_mesh = _start_devices(settings)
    share = sharding.data_share(mesh)
    evaluation = settings.evaluation
    benchmark = load_benchmark(evaluation.benchmark) if evaluation.every else []
    examples, bad_rows = read_examples(settings.data.train_json)
    source = _claim_source(settings, workdir)
    rejected = RejectedLog(workdir / "rejected.jsonl", write=processes.is_first())
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

    kept = [example for example in examples if keep(example)]
    image_root = settings.data.image_root
    preparer = settings.preparer(tokenizer, with_response=with_response, image_root=image_root)
    data = _open_data(settings, kept, preparer, rejected, share)
    checkpoints = Checkpoints(workdir, settings.checkpoint)
    first_step = checkpoints.latest() or 0
    if first_step:
        state, frozen, data_state = checkpoints.restore(state, frozen)
        data.set_state(pipeline.position(data_state, *share))
    if processes.is_first():
        if first_step:
            print(f"resumed from step {first_step}", flush=True)
        print(f"{len(examples)} examples, {len(rejected)} rows left out", flush=True)
    return Run(
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


def trainable(
    model: loading.Model, settings: Settings, mesh: Mesh
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The graph of what is run, its parameters to be trained, and those that stay as they are."""
    if settings.lora is None:
        return model.graph, *split_trainable(model.params, settings.freeze)
    graph, shapes = lora.attach(model.graph, model.params, settings.lora)
    where = sharding.parameter_shardings(shapes, mesh)
    params = jax.jit(lambda: lora.init(shapes, settings.seed), out_shardings=where)()
    return graph, params, model.params


def _start_devices(settings: Settings) -> tuple[Mesh, Mesh]:
    """The meshes of training and sampling, which can divide the run's rows.

    Raises:
      ConfigError: if they can't.
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
    """The batches that this process reads."""
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
    # The parameters themselves stay where they are: a program would return copies of them.
    begin = jax.jit(
        lambda p: init_state(p, optimizer, seed)._replace(params=None),
        out_shardings=layout._replace(params=None),
    )
    return begin(params)._replace(params=params)


def _claim_source(settings: Settings, workdir: pathlib.Path) -> str:
    """What the run starts from. A LoRA run's folder is made to remember it, and does on resuming.

    Raises:
      UserError: for settings that aren't those of the folder's run.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    wanted = None
    if settings.lora is not None:
        dtype = settings.model.precision.params
        base = run_folder.exactly(settings.source)
        wanted = adapters.Record(base, str(dtype), settings.lora)
    record = adapters.claim(workdir, wanted, resumes=run_folder.find_run(workdir) is not None)
    return record.base if record else settings.source
