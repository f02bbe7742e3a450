"""Whether a run's files can be reached from every process: workdir, data, held-out rows, model."""

import contextlib
import pathlib
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax

from mirg_jax.data.examples import Example
from mirg_jax.data.images import image_size
from mirg_jax.data.prompts import Tokenizer
from mirg_jax.doctor.report import Check
from mirg_jax.errors import ConfigError, DataError
from mirg_jax.files import outputs, places
from mirg_jax.files.places import Place
from mirg_jax.mig_bench import benchmark
from mirg_jax.models import qwen2_vl
from mirg_jax.models.config import ModelConfig
from mirg_jax.planning.shapes import RunShapes
from mirg_jax.runs import facts, loading, origin, run_folder
from mirg_jax.runs.checkpoints import saved_bytes
from mirg_jax.runs.settings import DataSettings, EvaluationSettings, Settings
from mirg_jax.runs.tokenizer import load_tokenizer
from mirg_jax.sharding import processes
from mirg_jax.training import start, usable

# Seconds in which what another host has written is seen here; NFS trusts its cache for 30.
_SEEN = 35.0
_TRIAL = b"\0" * 2**20  # written to see whether there is any room at all


def workdir(check: Check, folder: Place) -> bool:
    """Writes into the run's folder from every process, and reads what the first wrote.

    Afterwards all is as it was. All processes must call this.

    Returns:
      Whether all processes can use the folder, and it is the same one.
    """
    name = processes.gather(f"doctor-{uuid.uuid4().hex}")[0]
    with borrowed(folder):
        problem = _write(folder, folder / name) if processes.is_first() else ""
        refused = processes.gather(problem)[0]
        if not refused and not processes.is_first():
            problem = _read(folder, folder / name)
        if problem:
            check.problem(problem)
        fine = not any(processes.gather(problem))  # and all have read it
        if processes.is_first():
            _remove(folder / name)
    if fine and processes.is_first():
        saved = run_folder.find_run(folder)
        check.ok(f"{folder}: " + (f"goes on from {saved.folder}" if saved else "a new run"))
    return fine


@contextlib.contextmanager
def borrowed(folder: Place) -> Iterator[None]:
    """Has the first process remove, in the end, a folder and those above it that were made here.

    In a store there are no folders.
    """
    made = []
    if processes.is_first() and isinstance(folder, pathlib.Path):
        made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # there is something in one
            for each in made:
                each.rmdir()


def appears(file: Place) -> bool:
    """Waits for a file that another host has written; returns whether it is seen here."""
    end = time.monotonic() + _SEEN
    while not (seen := file.exists()) and time.monotonic() < end:
        time.sleep(0.5)
    return seen


def _write(folder: Place, file: Place) -> str:
    """Writes a file; returns why it can't be written, or ""."""
    try:
        outputs.check_folder(folder, "--workdir")
        outputs.make_folder(folder)
        start.check_folder(folder)
        with places.reached(file):
            file.write_bytes(_TRIAL)
    except ConfigError as error:
        return str(error)
    except OSError as error:
        return f"--workdir={str(folder)!r} can't be written ({error.strerror}); make room there"
    return ""


def _remove(file: Place) -> None:
    with contextlib.suppress(OSError), places.reached(file):
        file.unlink(missing_ok=True)


def remove_folder(folder: Place) -> None:
    """Removes a folder and all that is in it, as far as that goes."""
    if isinstance(folder, pathlib.Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(OSError), places.reached(folder):
        folder.rmtree(missing_ok=True)


def _read(folder: Place, file: Place) -> str:
    """Reads the first process's file and writes one beside it; returns what is wrong, or ""."""
    try:
        with places.reached(file):
            same = appears(file) and file.read_bytes() == _TRIAL
    except OSError as error:
        return f"--workdir={str(folder)!r} can't be read ({error.strerror})"
    if not same:
        return (
            f"--workdir={str(folder)!r} is not the first process's folder; give one on a file "
            "system that all hosts share"
        )
    own = file.with_name(f"{file.name}-{jax.process_index()}")
    problem = _write(folder, own)
    _remove(own)
    return problem


def room(check: Check, run: RunShapes, folder: Place) -> None:
    """Compares the bytes of the recipe's checkpoints with the free space for them."""
    settings = run.settings
    each = saved_bytes(run.state, run.frozen)
    evaluated = 1 if settings.evaluation.every else 0  # the best is kept too
    keep, every = settings.checkpoint.keep, settings.checkpoint.every
    saves = 1 + (settings.num_steps // every if every else 1)  # the first and the last always
    count = 1 + (keep + evaluated if keep else saves)  # one more while it is written
    there = len(run_folder.steps(folder / "checkpoints"))
    needed = max(count - there, 1) * each
    if not isinstance(folder, pathlib.Path):
        check.ok(f"{count} checkpoints of {_bytes(each)} in a store")
        return
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    what = f"{count} checkpoints of {_bytes(each)}"
    what += f", {there} of them there" if there else ""
    if needed > free:
        fewer = " or --config.checkpoint.keep=1" if keep != 1 else ""
        check.problem(
            f"{what} need {_bytes(needed)}, {existing} has {_bytes(free)} free; make room, or give "
            f"another --workdir{fewer}"
        )
    else:
        check.ok(f"{what}, {_bytes(free)} free")


class FoundModel(NamedTuple):
    """The model that the run starts from, without its parameters."""

    config: ModelConfig
    folder: pathlib.Path
    tokenizer: Tokenizer


def model(check: Check, settings: Settings, folder: Place) -> FoundModel:
    """Opens the model that the run starts from, without loading or downloading its weights.

    Args:
      check: takes what is found.
      settings: the recipe.
      folder: the run's folder, whose run may go on.

    Raises:
      CheckpointError: if there is no model, or it can't be used.
    """
    resumes = run_folder.find_run(folder) is not None
    source = origin.source_of(settings.source, origin.read(folder) if resumes else None)
    named = places.is_url(source) or run_folder.find_run(source) or pathlib.Path(source).exists()
    where = loading.model_folder(source, weights=False)
    if named or any(where.glob("*.safetensors")):
        opened, _ = loading.open_model(source if named else where)
        config = opened.config
        check.ok(f"{source}: {config.model_type}, its weights fit its config.json")
    else:
        config = ModelConfig.from_folder(where)  # which asks for no weights
        nbytes = sum(2 * leaf.size for leaf in jax.tree.leaves(qwen2_vl.abstract(config)[1]))
        free = shutil.disk_usage(where).free
        if nbytes > free:
            check.problem(
                f"{source}: its weights, {_bytes(nbytes)}, are not here yet, and {where} has "
                f"{_bytes(free)} free; make room, or set HF_HOME to a folder on another disk"
            )
        else:
            check.warning(
                f"{source}: its weights, {_bytes(nbytes)}, are not here yet; the run downloads "
                f"them at its start, or do it before: hf download {source}"
            )
    content = facts.hash_file(where / "config.json")[:12]
    check.same(f"config.json of {source}", content, "give all hosts the same model")
    return FoundModel(config, where, load_tokenizer(where))


def data(check: Check, settings: Settings) -> list[Example]:
    """Reads the training data, and the images of one row.

    Returns:
      The examples that this stage can use.

    Raises:
      DataError: if there are none.
      ConfigError: if the recipe names no data.
    """
    of: DataSettings = settings.data
    if not of.train_json:
        raise ConfigError("data.train_json is not set: give the path of the training data")
    kept, rejected, _ = usable.read(settings, usable.refusal(settings))
    usable.check(of, kept, rejected)
    check.same(of.train_json, facts.hash_rows(of.train_json)[:12], "give all hosts the same file")
    check.ok(f"{of.train_json}: {len(kept)} examples, {len(rejected)} rows left out")
    if len(rejected) > len(kept):
        first = rejected[0]
        check.warning(
            f"{len(rejected)} rows are left out, more than are used; the first: {first.source}: "
            f"{first.reason}"
        )
    return kept


def held_out(check: Check, of: EvaluationSettings, data: DataSettings) -> None:
    """Reads the held-out rows that the run is evaluated on, and the images of one.

    Raises:
      DataError: if they can't be used.
      ConfigError: if the recipe names none.
    """
    if not of.benchmark:
        raise ConfigError("evaluation.every is set, but evaluation.benchmark is not: give its path")
    rows: Sequence[benchmark.Row] = benchmark.load_benchmark(of.benchmark)
    root = data.root(of.image_root)
    if problem := usable.why_unreadable((row.images for row in rows), root, image_size):
        raise DataError(
            f"no held-out row can be used; the first: {problem}; set evaluation.image_root"
        )
    check.same(of.benchmark, facts.hash_rows(of.benchmark)[:12], "give all hosts the same file")
    check.ok(f"{of.benchmark}: {len(rows)} rows, every {of.every} steps")


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
