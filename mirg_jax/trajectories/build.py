"""Builds trajectories from a data set's files."""

import asyncio
import collections
import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

from mirg_jax.chat.client import Client
from mirg_jax.data.examples import Example
from mirg_jax.data.image_hashes import ImageHashes
from mirg_jax.data.images import Root
from mirg_jax.errors import ConfigError, DataError
from mirg_jax.files.locks import Lock
from mirg_jax.files.outputs import check_kind, replace_text
from mirg_jax.runs import facts, run_folder
from mirg_jax.trajectories import checks, outputs, page, prompts, select, shards
from mirg_jax.trajectories.batches import BatchFiles, exchange_files
from mirg_jax.trajectories.estimate import Estimate, estimate
from mirg_jax.trajectories.ingest import Source
from mirg_jax.trajectories.journal import Journal
from mirg_jax.trajectories.pipeline import Pipeline
from mirg_jax.trajectories.plan import Plan, replay
from mirg_jax.trajectories.scene_teacher import SceneTeacher
from mirg_jax.trajectories.settings import (
    ModelTeacherSettings,
    OpenAITeacherSettings,
    SceneTeacherSettings,
    TrajectorySettings,
)
from mirg_jax.trajectories.shards import Shard
from mirg_jax.trajectories.teachers import EncodedImages, OpenAITeacher, Teacher


def _encoded_images(settings: TrajectorySettings, image_root: Root) -> EncodedImages:
    # Twice the number of questions that are worked on at a time. With fewer, the images of a new
    # question would push out those that another question needs for its next stage.
    return EncodedImages(image_root, kept=3 * settings.requests.concurrency)


def make_teachers(settings: TrajectorySettings, image_root: Root) -> dict[str, Teacher]:
    """Makes the teacher of each stage.

    Raises:
      ConfigError: the environment lacks the key of a server.
    """
    images = _encoded_images(settings, image_root)
    teachers: dict[str, Teacher] = {}
    connect = functools.cache(Client)  # stages that ask the same model of the same server share it
    # Stages with the same settings share a teacher of this process, so a model is loaded once.
    in_process: dict[str, Teacher] = {}
    for stage, stage_settings in settings.stages.items():
        how = stage_settings.teacher
        if isinstance(how, OpenAITeacherSettings):
            teachers[stage] = OpenAITeacher(how, images, connect)
            continue
        if how.identity not in in_process:
            in_process[how.identity] = _in_process_teacher(how, image_root)
        teachers[stage] = in_process[how.identity]
    return teachers


def _in_process_teacher(
    settings: ModelTeacherSettings | SceneTeacherSettings, image_root: Root
) -> Teacher:
    if isinstance(settings, SceneTeacherSettings):
        return SceneTeacher(settings)
    # Imported here because it takes seconds, and the other teachers don't need it.
    from mirg_jax.trajectories.model_teacher import ModelTeacher

    return ModelTeacher(settings, image_root)


def _check_models(settings: TrajectorySettings, record: pathlib.Path) -> None:
    """Checks that models in this process are those that answered before under the same names.

    Args:
      settings: the settings.
      record: file with the hash of each model by its name.

    Raises:
      ConfigError: if one has changed.
      CheckpointError: if the record can't be read.
    """
    teachers = [stage.teacher for stage in settings.stages.values()]
    models = {each.model for each in teachers if isinstance(each, ModelTeacherSettings)}
    if not models:
        return
    hashes = {model: facts.hash_model(model) for model in sorted(models)}
    remedy = "delete it if no model has changed since, or give another --output_dir"
    parse = run_folder.as_object
    with Lock(record.with_suffix(".lock"), patience=60.0):  # other shards have other models
        found = run_folder.read_record(record, parse, "models by name", remedy) or {}
        for model, now in hashes.items():
            if now and not facts.agrees(found.get(model, now), now):
                raise ConfigError(
                    f"{record.parent}: has answers of {model} as it was before its weights "
                    "changed; give another --output_dir, or delete it"
                )
        with _explained(record.parent):
            replace_text(record, json.dumps(found | hashes, indent=1) + "\n")


def make_plan(settings: TrajectorySettings, image_root: Root) -> Plan:
    """Reads the prompts, and makes the plan of the stages.

    Args:
      settings: the settings.
      image_root: folder that the images' paths are relative to.

    Raises:
      ConfigError: for prompts that can't be used, or a task of the selection without prompts.
    """
    texts = prompts.load_prompts(settings.prompts)
    weights = settings.selection.weights
    if missing := {task for task, weight in weights.items() if weight > 0} - texts.tasks():
        raise ConfigError(
            f"select.weights: no prompt for the task {min(missing)!r}; add one to each stage's "
            "folder, or give it the weight 0"
        )
    rules = dataclasses.replace(settings.rules, leaks=checks.read_leaks(texts.leaks))
    return Plan(texts, rules, settings.stages, ImageHashes(image_root).of)


def _questions(
    settings: TrajectorySettings,
    source: Source,
    image_root: Root,
    output_dir: pathlib.Path,
    shard: Shard | None,
) -> list[Example]:
    """Returns the questions to annotate: of a shard, its part."""
    folder = output_dir / "selection"
    with _explained(folder):
        questions = select.prepare_questions(source, image_root, folder, settings.selection)
    return shards.draw(questions, shard, output_dir) if shard else questions


@contextlib.contextmanager
def _open_journal(
    output_dir: pathlib.Path, shard: Shard | None, retry_failed: bool
) -> Iterator[Journal]:
    """Opens the journal, which locks the folder or the shard, before anything is written there.

    Raises:
      ConfigError: another process asks about the same questions.
      DataError: a journal can't be read or written.
    """
    check_kind(output_dir, "selection", "--output_dir")
    if shard:
        shards.how_drawn(output_dir, shard)
    name = f"replies-{shard.name}.jsonl" if shard else "replies.jsonl"
    journal = Journal(output_dir, name, write=True, retry_failed=retry_failed)
    try:
        shards.refuse_overlap(output_dir, shard)
        yield journal
    finally:
        journal.close()


class BuildResult(NamedTuple):
    """What a run came to.

    Attributes:
      summary: as in summary.json.
      stopped: why the run ended before all requests were sent; "" if it didn't.
      folder: the folder of the outputs.
    """

    summary: dict
    stopped: str
    folder: pathlib.Path


def build(
    settings: TrajectorySettings,
    *,
    source: Source,
    image_root: Root,
    output_dir: pathlib.Path,
    shard: Shard | None = None,
    retry_failed: bool = False,
    progress: bool = True,
) -> BuildResult:
    """Chooses questions, sends the requests that were not answered before, and writes all outputs.

    Args:
      source: files or a folder in the layout of MGrounding-630k.
      image_root: folder that the images' paths are relative to.
      output_dir: folder of the outputs, the selection and the journal.
      shard: does only this part of the questions, with its own journal. Without a shard, all
        journals in the folder count, so shards are merged by putting theirs into one folder.
      retry_failed: sends requests again that were given up before.
      progress: shows a progress bar.

    Raises:
      UserError: for input that can't be used, or a server that doesn't answer; the outputs of what
        was answered so far are written first.
    """
    teachers = make_teachers(settings, image_root)
    plan = make_plan(settings, image_root)
    with _open_journal(output_dir, shard, retry_failed) as journal:
        questions = _questions(settings, source, image_root, output_dir, shard)
        _check_models(settings, output_dir / "models.json")
        pipeline = Pipeline(plan, teachers, journal, settings.requests)
        asyncio.run(pipeline.run(questions, progress=progress))
        summary = _write_outputs(settings, questions, plan, journal, image_root, output_dir, shard)
    if pipeline.error:
        raise pipeline.error
    return BuildResult(summary, pipeline.stopped, _output_folder(output_dir, shard))


class BatchResult(NamedTuple):
    """What a round of batch files came to.

    Attributes:
      summary: as in summary.json.
      files: with requests, that were written in this round.
      unanswered: the files of earlier rounds that have no answers yet.
      waiting: number of requests in them.
      capped: number of requests that might cost more than `max_dollars` leaves.
    """

    summary: dict
    files: list[pathlib.Path]
    unanswered: list[pathlib.Path]
    waiting: int
    capped: int


def batch(
    settings: TrajectorySettings,
    *,
    source: Source,
    image_root: Root,
    output_dir: pathlib.Path,
    shard: Shard | None = None,
    retry_failed: bool = False,
) -> BatchResult:
    """Does a round of `build` by files for batch interfaces, in OUTPUT_DIR/batches. Needs no key.

    The arguments are those of `build`.

    Raises:
      UserError: as `build`, and for a teacher without a batch interface.
    """
    teachers = [stage.teacher for stage in settings.stages.values()]
    if not all(isinstance(teacher, OpenAITeacherSettings) for teacher in teachers):
        raise ConfigError("--batches: every stage's teacher must be openai")
    plan, folder = make_plan(settings, image_root), output_dir / "batches"
    images, requests = _encoded_images(settings, image_root), settings.requests
    with _open_journal(output_dir, shard, retry_failed) as journal:
        questions = _questions(settings, source, image_root, output_dir, shard)
        with _explained(folder):
            found = BatchFiles(folder, journal, settings.stages, images, requests, shard)
            files = exchange_files(questions, plan, journal, found)
        summary = _write_outputs(settings, questions, plan, journal, image_root, output_dir, shard)
    return BatchResult(summary, files, found.unanswered, found.waiting, found.capped)


def _write_outputs(
    settings: TrajectorySettings,
    questions: list[Example],
    plan: Plan,
    journal: Journal,
    image_root: Root,
    output_dir: pathlib.Path,
    shard: Shard | None,
) -> dict:
    """Writes the outputs that follow from the journal, those of a shard to a folder of its own.

    Returns: the summary.
    """
    folder = _output_folder(output_dir, shard)
    sample = page.Sample(settings.page_examples, len({question.task for question in questions}))
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        outcomes = replay(questions, plan, journal)
        for outcome in outputs.write_outcomes(outcomes, folder, plan.asked()):
            sample.add(outcome)
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        page.write_trajectory_page(folder / "report.html", summary, sample.outcomes, image_root)
    return summary


@contextlib.contextmanager
def _explained(folder: pathlib.Path) -> Iterator[None]:
    """Turns errors of the system in a `with` block into a `DataError` that names the folder."""
    try:
        yield
    except OSError as error:
        file = f"{error.filename}: " if error.filename else ""
        raise DataError(
            f"{folder}: can't be written ({file}{error.strerror or error}); fix that and run "
            "again, no answer is lost"
        ) from None


def _output_folder(output_dir: pathlib.Path, shard: Shard | None) -> pathlib.Path:
    return output_dir / f"shard-{shard.name}" if shard else output_dir


def dry_run(
    settings: TrajectorySettings,
    *,
    source: Source,
    image_root: Root,
    output_dir: pathlib.Path,
    shard: Shard | None = None,
) -> Estimate:
    """Estimates what `build` has still to ask for. Sends no request, and needs no key.

    Chooses the questions as `build` does, and writes the selection. The arguments are those of
    `build`.

    Raises:
      UserError: for input that can't be used.
    """
    questions = _questions(settings, source, image_root, output_dir, shard)
    plan = make_plan(settings, image_root)
    journal = Journal(output_dir, "replies.jsonl", write=False)
    try:
        tasks = collections.Counter(question.task for question in questions)
        return estimate(replay(questions, plan, journal), plan, tasks, spent=journal.dollars)
    finally:
        journal.close()
