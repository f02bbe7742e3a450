"""Set-up shared by SFT and GRPO: devices, model, optimizer, data, and the state to resume."""

import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from mirg_jax import sharding
from mirg_jax.data import pipeline
from mirg_jax.data.examples import Example, Rejected
from mirg_jax.data.pipeline import Preparer, RejectedLog
from mirg_jax.data.prompts import Tokenizer
from mirg_jax.errors import CheckpointError, ConfigError, SaveError
from mirg_jax.files import outputs, places
from mirg_jax.files.places import Place
from mirg_jax.files.streams import say
from mirg_jax.mig_bench.benchmark import Row, load_benchmark
from mirg_jax.models import lora
from mirg_jax.models.config import ModelConfig
from mirg_jax.runs import adapters, checks, devices, engines, facts, loading, origin, run_folder
from mirg_jax.runs.checkpoints import Checkpoints, write_model_folder
from mirg_jax.runs.settings import Settings
from mirg_jax.runs.tokenizer import load_tokenizer, say_if_begun
from mirg_jax.runs.train_state import TrainState, init_state, split_trainable, state_shardings
from mirg_jax.sharding import processes
from mirg_jax.training import resumed, usable
from mirg_jax.training.optimizer import make_optimizer


class Description(NamedTuple):
    """What a run's folder tells of the run, apart from its checkpoints."""

    model: loading.Model  # without its parameters
    config: str  # the text of config.json
    adapters: adapters.Record | None  # of a LoRA run
    origin: origin.Origin
    data: Mapping[str, Any]  # as in data.json; known in the first process alone

    def write(self, workdir: Place) -> None:
        """Writes the description.

        Raises:
          SaveError: if it can't be written.
        """
        try:
            write_model_folder(workdir, self.model, self.config)
            adapters.write(workdir, self.adapters)
            origin.write(workdir, self.origin)
            resumed.write_data(workdir, self.data)
        except OSError as error:
            raise SaveError(
                f"{workdir}: cannot be written ({error.strerror}); {places.remedy(workdir)} and "
                "run again"
            ) from None


class TrainingRun(NamedTuple):
    """A training run that is ready for its next step."""

    settings: Settings
    workdir: Place
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
    data: pipeline.Batches
    share: sharding.Share  # the share of the data that this process reads
    rejected: RejectedLog
    benchmark: Sequence[Row]  # held-out rows; empty without evaluation
    checkpoints: Checkpoints
    first_step: int  # number of steps taken before
    description: Description  # written into the folder with the first step

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes metrics, logs and the model folder."""
        return processes.is_first()

    def for_sampling(
        self, state: TrainState, weights_of: Callable[[nnx.State], nnx.State], others: Any
    ) -> tuple[nnx.State, nnx.State, list[jax.Array]]:
        """Returns what samples with a state's parameters, and what lies beside it.

        Args:
          state: the training state.
          weights_of: makes the sampler's weights, from `make_weights`.
          others: arrays on the devices besides the training state and the frozen parameters.

        Returns:
          All parameters; the sampler's weights, which may be these; and all other arrays on the
          devices, on the sampling mesh.
        """
        params = nnx.merge_state(state.params, self.frozen)
        weights = weights_of(params)
        unused = None if weights is params else params
        beside = sharding.resident_on((state.opt_state, others, unused), self.sampling_mesh)
        return params, weights, beside


def start(
    settings: Settings,
    workdir: Place,
    *,
    with_response: bool,
    refuse: Callable[[Example], str] = lambda _: "",
) -> TrainingRun:
    """Prepares a run, and resumes it if `workdir` contains a checkpoint.

    A refused attempt leaves a run as it was: the loop writes the description with the first batch.

    Args:
      settings: the run's settings.
      workdir: the run's folder, which `claimed` should keep to this run.
      with_response: whether examples are encoded with their response (SFT).
      refuse: returns why this kind of training can't use an example, or "" if it can.

    Raises:
      UserError: if a setting, the data or a checkpoint can't be used.
    """
    mesh, sampling_mesh = _start_devices(settings)
    share = sharding.data_share(mesh)
    benchmark = load_benchmark(settings.evaluation.benchmark) if settings.evaluation.every else []
    kept, left_out = _read_rows(settings, refuse)
    saved = run_folder.find_run(workdir)
    resumes = saved is not None
    source, adapter_record = _source_of(settings, workdir, saved)
    settings, model, tokenizer = _open_model(settings, source, mesh)
    began = _check_origin(settings, workdir, source, model.params, mesh, resumes)
    graph, params, frozen = trainable(model, settings, mesh)
    optimizer, layout, state = first_state(params, settings, mesh)
    root = settings.data.root(settings.data.image_root)
    preparer = settings.preparer(tokenizer, with_response=with_response, image_root=root)
    data = _open_data(settings, kept, preparer, share)
    checkpoints = Checkpoints(workdir, settings.checkpoint)
    checkpoints.check_room(state, frozen)
    first_step = checkpoints.latest() or 0
    if first_step:
        state, frozen, read = checkpoints.restore(state, frozen)
        _check_model(workdir, source, model.config, tokenizer)
        data.set_state(pipeline.position(read, *share))
    rejected = _list_rejected(workdir, left_out, first_step if resumes else None)
    data_facts = resumed.facts_of_data(settings) if processes.is_first() else {}
    _say(settings, workdir, first_step, kept, len(rejected), data_facts, with_response)
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
        description=Description(
            model._replace(params=None), settings.text, adapter_record, began, data_facts
        ),
    )


@contextlib.contextmanager
def claimed(settings: Settings, workdir: Place) -> Iterator[None]:
    """Keeps a run's folder to this run while the `with` block runs.

    Raises:
      ConfigError: if another run is writing to the folder, it can't hold checkpoints, or devices
        and settings don't match.
    """
    devices.start(settings.devices)
    with processes.locked(workdir / "run.lock"):
        problem = ""
        if processes.is_first():
            try:
                check_folder(workdir)
            except ConfigError as error:
                problem = str(error)
        if problem := processes.gather(problem)[0]:
            raise ConfigError(problem)
        yield


def check_folder(workdir: Place) -> None:
    """Checks that a folder that is there can be a run's.

    Raises:
      ConfigError: if it is a Hugging Face model, whose config.json the run would replace, has
        results of another kind, can't hold checkpoints, or can't be read.
    """
    try:
        with places.reached(workdir):
            if any(workdir.glob("*.safetensors*")):
                raise ConfigError(
                    f"--workdir={workdir}: is the folder of a model; give another for the run"
                )
            outputs.check_kind(workdir, "checkpoints", "--workdir")
    except OSError as error:
        told = places.remedy(workdir, "let this user read it")
        raise ConfigError(
            f"--workdir={workdir}: cannot be read ({error.strerror}); {told}"
        ) from None
    if isinstance(workdir, pathlib.Path):
        outputs.check_renames(workdir)


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


def _say(
    settings: Settings,
    workdir: Place,
    first_step: int,
    examples: Sequence[Example],
    rejected: int,
    data: Mapping[str, Any],
    with_response: bool,
) -> None:
    """Prints, in one process, what the run starts with, and what has changed."""
    if not processes.is_first():
        return
    if with_response:
        usable.say_misses(settings.data.train_json, examples)
    if first_step:
        say(f"resumed from step {first_step}", sys.stdout)
        for line in resumed.changes(workdir, settings, data):
            say(line)
    say(f"{len(examples)} examples, {rejected} rows left out", sys.stdout)
    usable.say_passes(settings.num_steps, settings.batch_size, len(examples))


def _start_devices(settings: Settings) -> tuple[Mesh, Mesh]:
    """Creates the meshes for training and sampling, and checks that batches can be sharded.

    Raises:
      ConfigError: if the meshes don't match the devices or the batch sizes.
    """
    mesh = devices.start(settings.devices)
    sampling_mesh = devices.sampling_mesh(settings.devices, mesh)
    checks.rows(
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
    share: sharding.Share,
) -> pipeline.Batches:
    """Opens the iterator of the batches that this process reads."""
    return pipeline.batches(
        examples,
        preparer,
        batch_size=settings.examples_at_once // share.count,
        seed=settings.seed,
        share=share.index,
        shares=share.count,
        threads=settings.data.reading_threads,
    )


def first_state(
    params: nnx.State, settings: Settings, mesh: Mesh
) -> tuple[optax.GradientTransformation, TrainState, TrainState]:
    """Returns the optimizer, the shardings of the state's arrays, and the state of step 0."""
    optimizer = make_optimizer(settings.optimizer, settings.num_steps * settings.updates_per_step)
    layout = state_shardings(params, optimizer, mesh, on_host=settings.optimizer.on_host)
    # The parameters are not passed through the jitted function, which would copy them.
    begin = jax.jit(
        lambda p: init_state(p, optimizer, settings.seed)._replace(params=None),
        out_shardings=layout._replace(params=None),
    )
    return optimizer, layout, begin(params)._replace(params=params)


def _open_model(
    settings: Settings, source: str, mesh: Mesh
) -> tuple[Settings, loading.Model, Tokenizer]:
    """Opens the model that a run starts from, and fits the settings to it.

    Raises:
      UserError: if the model can't be used, or not with these settings.
    """
    sizes = loading.model_config(source)
    settings = settings.for_model(sizes)
    options = engines.options(settings.model, sizes, mesh)
    folder = loading.model_folder(source)
    tokenizer = load_tokenizer(folder)
    say_if_begun(folder, settings.prompt)
    return settings, loading.load_model(source, mesh, options), tokenizer


def _read_rows(
    settings: Settings, refuse: Callable[[Example], str]
) -> tuple[list[Example], list[Rejected]]:
    """Returns the rows to train on, each with the form of its answer, and those that are left out.

    Raises:
      DataError: if the file or its ratings can't be used, or no row can.
    """
    kept, left_out, chosen = usable.read(settings, refuse)
    if chosen and processes.is_first():
        say(chosen)
    usable.check(settings.data, kept, left_out)
    return kept, left_out


def _list_rejected(workdir: Place, rows: Sequence[Rejected], step: int | None) -> RejectedLog:
    """Opens the list of rows that can't be used, with those that are known from the start.

    A new run doesn't inherit the rows that an attempt before it could not use.

    Args:
      workdir: the run's folder.
      rows: those known from the start.
      step: the step that the run is resumed from; None for a new run.
    """
    path = workdir / "rejected.jsonl"
    rejected = RejectedLog(path, write=processes.is_first(), step=step)
    for row in rows:
        rejected.add(row)
    return rejected


def _source_of(
    settings: Settings, workdir: Place, saved: run_folder.SavedStep | None
) -> tuple[str, adapters.Record | None]:
    """Returns the model that the run starts from, and the record of a LoRA run.

    A resumed LoRA run starts from the base that its record names.

    Raises:
      CheckpointError: if the folder has a run with other adapter settings.
      ConfigError: if it has a run with another number of updates a step.
    """
    resumes = saved is not None
    if saved and saved.step:
        resumed.check_updates(workdir, settings)
    source = origin.source_of(settings.source, origin.read(workdir) if resumes else None)
    wanted = None
    if settings.lora is not None:
        wanted = adapters.Record(source, str(settings.model.precision.params), settings.lora)
    record = adapters.claim(workdir, wanted, resumes=resumes)
    return (record.base if record else source), record


def _check_model(workdir: Place, source: str, config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Checks that a run goes on with the architecture and the tokenizer that it has.

    Raises:
      CheckpointError: if `source` has others now.
    """
    try:
        folder = loading.model_folder(workdir)
        before, vocabulary = ModelConfig.from_folder(folder), load_tokenizer(folder).get_vocab()
    except CheckpointError:  # damaged, or not there; it is written anew
        return
    if before != config:
        found, now = (facts.flat(each.to_hf()) for each in (before, config))
        what = f"config.json ({'; '.join(facts.describe_changes(found, now))})"
    elif vocabulary != tokenizer.get_vocab():
        what = "tokenizer"
    else:
        return
    raise CheckpointError(
        f"{workdir}: can't go on, since {source} has another {what} than the run's model folder; "
        "restore it, or give another --workdir"
    )


def _check_origin(
    settings: Settings,
    workdir: Place,
    source: str,
    params: nnx.State,
    mesh: Mesh,
    resumes: bool,
) -> origin.Origin:
    """Returns the record of the weights that the run starts from.

    Raises:
      CheckpointError: if the folder has a run that started from other weights.
    """
    dtype = str(settings.model.precision.params)
    found = origin.Origin(source, origin.fingerprint(params, mesh), dtype)
    if not resumes:
        return found
    if recorded := origin.read(workdir):
        origin.check(workdir, recorded, found)
        return recorded
    if processes.is_first():
        say(
            f"{workdir}: an earlier version did not record the weights that this run started from; "
            f"from now on they are those of {source}"
        )
    return found
