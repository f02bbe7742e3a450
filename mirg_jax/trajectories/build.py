"""Everything from a data set's files to trajectories in a folder."""

import asyncio
import collections
import json
import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from mirg_jax.data.examples import Example
from mirg_jax.errors import ConfigError
from mirg_jax.trajectories import batches, checks, outputs, page, prompts, select
from mirg_jax.trajectories.estimate import Estimate, estimate
from mirg_jax.trajectories.ingest import Source
from mirg_jax.trajectories.journal import Journal
from mirg_jax.trajectories.limits import Costs
from mirg_jax.trajectories.pipeline import Plan, Run, replay
from mirg_jax.trajectories.prompts import STAGES
from mirg_jax.trajectories.scene_teacher import SceneTeacher
from mirg_jax.trajectories.teachers import Images, OpenAITeacher, Teacher


class Shard(NamedTuple):
    """A share of the questions: those at index, index + count, …"""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Reads "i/n", i from 0.

        Raises:
          ConfigError: for anything else.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if not match or int(match[1]) >= int(match[2]):
            raise ConfigError(f"--shard={text}: it is i/n with i from 0 to n - 1, such as 0/4")
        return cls(int(match[1]), int(match[2]))

    @property
    def journal(self) -> str:
        return f"replies-{self.index}-of-{self.count}.jsonl"


def make_teachers(config: ConfigDict, image_root: str) -> dict[str, Teacher]:
    """The teacher of each stage.

    Raises:
      ConfigError: for one that isn't known, or has no key.
    """
    teachers: dict[str, Teacher] = {}
    # Twice what is under way: with less, what a new question pushes out is what another needs next.
    images = Images(image_root, config.max_pixels, kept=3 * config.concurrency)
    scenes = SceneTeacher(config.scenes.seed, config.scenes.error)
    for stage in STAGES:
        how = config.stages[stage].to_dict()
        if how["teacher"] == "openai":
            teachers[stage] = OpenAITeacher(how, images)
        elif how["teacher"] == "scenes":
            teachers[stage] = scenes
        elif how["teacher"] == "model":
            made = _model_teacher(how, image_root)
            # One that serves several stages is loaded once.
            same = (other for other in teachers.values() if other.settings == made.settings)
            teachers[stage] = next(same, made)
        else:
            raise ConfigError(
                f"stages.{stage}.teacher={how['teacher']!r}: openai, scenes and model are known"
            )
    return teachers


def _model_teacher(how: Mapping, image_root: str) -> Teacher:
    # Brings JAX along, which the others don't need.
    from mirg_jax.trajectories.model_teacher import ModelTeacher

    return ModelTeacher(how, image_root)


def make_plan(config: ConfigDict, teachers: Mapping[str, Teacher]) -> Plan:
    """The plan of a config.

    Raises:
      ConfigError: for prompts or rules that can't be used.
    """
    texts = prompts.load(config.prompts)
    if missing := {t for t, w in config.select.weights.items() if w > 0} - texts.tasks():
        raise ConfigError(
            f"select.weights: no prompt for the task {min(missing)!r}; add one to each stage's "
            "folder, or give it the weight 0"
        )
    rules = checks.Rules(**config.checks, leaks=checks.read_leaks(texts.leaks))
    settings = {stage: teacher.settings for stage, teacher in teachers.items()}
    # Who would answer the same again is asked once.
    tries = {
        stage: config.tries if how.temperature and how.teacher != "scenes" else min(config.tries, 1)
        for stage, how in config.stages.items()
    }
    return Plan(texts, rules, settings, tries)


def _select(
    config: ConfigDict,
    source: Source,
    image_root: str,
    folder: pathlib.Path,
    shard: Shard | None,
) -> list[Example]:
    """The questions of this share."""
    choice = select.Choice(
        **{name: config.select[name] for name in ("sft", "rl", "exclude", "exclude_root")},
        weights=config.select.weights.to_dict(),
        seed=config.seed,
    )
    questions = select.prepare(source, image_root, folder / "selection", choice)
    return questions[shard.index :: shard.count] if shard else questions


def _open_journal(folder: pathlib.Path, shard: Shard | None, retry_failed: bool) -> Journal:
    name = shard.journal if shard else "replies.jsonl"
    return Journal(folder, name, write=True, retry_failed=retry_failed)


class Result(NamedTuple):
    """The summary as in summary.json, and why not everything was asked, "" if it was."""

    summary: dict
    stopped: str


def build(
    config: ConfigDict,
    *,
    source: Source,
    image_root: str,
    output_dir: pathlib.Path,
    shard: Shard | None = None,
    retry_failed: bool = False,
    progress: bool = True,
) -> Result:
    """Chooses questions, asks what isn't asked yet, and writes what there is.

    Args:
      config: as `settings.trajectories`.
      source: files or folder in the layout of MGrounding-630k.
      shard: do only this share, with a journal of its own. Without one, all journals that lie in
        the folder count, so that shards are merged by putting theirs into one folder.
      retry_failed: ask once more what had no answer for good.

    Raises:
      UserError: for input or settings that can't be used, or a server that doesn't answer; what
        there is has been written then.
    """
    questions = _select(config, source, image_root, output_dir, shard)
    teachers = make_teachers(config, image_root)
    plan = make_plan(config, teachers)
    journal = _open_journal(output_dir, shard, retry_failed)
    try:
        run = Run(
            plan,
            teachers,
            journal,
            stages={stage: config.stages[stage].to_dict() for stage in STAGES},
            concurrency=config.concurrency,
            retries=config.retries,
            backoff=config.backoff,
            max_dollars=config.max_dollars,
        )
        asyncio.run(run.run(questions, progress=progress))
        summary = write_outputs(config, questions, plan, journal, image_root, output_dir, shard)
    finally:
        journal.close()
    if run.error:
        raise run.error
    return Result(summary, run.stopped)


class BatchResult(NamedTuple):
    """The summary, the files just written, and how many requests wait for their answers."""

    summary: dict
    files: list[pathlib.Path]
    waiting: int
    capped: int


def batch(
    config: ConfigDict,
    *,
    source: Source,
    image_root: str,
    output_dir: pathlib.Path,
    shard: Shard | None = None,
    retry_failed: bool = False,
) -> BatchResult:
    """A round of `build` by files for batch interfaces, in OUTPUT_DIR/batches; needs no key.

    The arguments are those of `build`.

    Raises:
      UserError: as `build`, and for a teacher that has no batch interface.
    """
    if not all(stage.teacher == "openai" for stage in config.stages.values()):
        raise ConfigError("--batches: every stage's teacher must be openai")
    questions = _select(config, source, image_root, output_dir, shard)
    teachers = make_teachers(_without_keys(config), image_root)
    plan = make_plan(config, teachers)
    journal = _open_journal(output_dir, shard, retry_failed)
    try:
        costs = {stage: Costs(config.stages[stage].to_dict()) for stage in STAGES}
        found = batches.Batches(
            output_dir / "batches",
            journal,
            teachers,
            costs,
            retries=config.retries,
            max_dollars=config.max_dollars,
        )
        files = batches.run(questions, plan, journal, found)
        summary = write_outputs(config, questions, plan, journal, image_root, output_dir, shard)
    finally:
        journal.close()
    return BatchResult(summary, files, found.waiting, found.capped)


def _without_keys(config: ConfigDict) -> ConfigDict:
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for stage in STAGES:
            config.stages[stage].key_variable = ""
    return config


def write_outputs(
    config: ConfigDict,
    questions: list[Example],
    plan: Plan,
    journal: Journal,
    image_root: str,
    output_dir: pathlib.Path,
    shard: Shard | None = None,
) -> dict:
    """Writes all that follows from the journal; a shard's into a folder of its own."""
    folder = output_dir / f"shard-{shard.index}-of-{shard.count}" if shard else output_dir
    folder.mkdir(parents=True, exist_ok=True)
    sample = page.Sample(config.page_examples, len({question.task for question in questions}))
    for outcome in outputs.write(replay(questions, plan, journal), folder):
        sample.add(outcome)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    page.write(folder / "report.html", summary, sample.outcomes, image_root)
    return summary


def dry_run(
    config: ConfigDict,
    *,
    source: Source,
    image_root: str,
    output_dir: pathlib.Path,
    shard: Shard | None = None,
) -> Estimate:
    """What is left to ask, and what it would take. Asks nothing, and needs no key.

    Chooses the questions as `build` does, and keeps the choice.

    Raises:
      UserError: as `build`.
    """
    questions = _select(config, source, image_root, output_dir, shard)
    plan = make_plan(config, make_teachers(_without_keys(config), image_root))
    journal = Journal(output_dir, "replies.jsonl", write=False)
    try:
        counts = collections.Counter(question.task for question in questions)
        stages = {stage: config.stages[stage].to_dict() for stage in STAGES}
        outcomes = replay(questions, plan, journal)
        return estimate(outcomes, plan, stages, journal.dollars, counts)
    finally:
        journal.close()
