"""Reads a recipe's data as its run would, and tells what it would use."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from mirg_jax.data.examples import Example, Rejected, Target
from mirg_jax.data.images import ImageRoot
from mirg_jax.data.prompts import Tokenizer
from mirg_jax.data_check import page, tables
from mirg_jax.data_check.survey import Measure, Survey, measured
from mirg_jax.errors import ConfigError, DataError
from mirg_jax.files import lines, outputs, places
from mirg_jax.files.streams import progress_bar
from mirg_jax.grounding.boxes import fraction_to_grid
from mirg_jax.mig_bench import benchmark
from mirg_jax.models.config import ModelConfig
from mirg_jax.runs import loading
from mirg_jax.runs.settings import Settings
from mirg_jax.runs.tokenizer import load_tokenizer
from mirg_jax.sharding.processes import Signals
from mirg_jax.training import usable


class _Source(NamedTuple):
    """A file whose rows were read, and not yet their images."""

    file: str
    examples: Sequence[Example]
    left_out: Sequence[Rejected]
    chosen: str
    measure: Measure
    root: ImageRoot


def check(
    settings: Settings,
    files: Sequence[str],
    output_dir: pathlib.Path | None,
    tell: Callable[[str], None],
) -> int:
    """Reads files as training would, and the recipe's held-out rows.

    A signal ends the reading; what was read until then is told.

    Args:
      settings: the recipe, for SFT or GRPO.
      files: the training files; none: the recipe's.
      output_dir: folder for the page, the figures and the list of what is left out; None: none.
      tell: takes the text for each file.

    Returns:
      The number of the signal that ended it; 0 for none.

    Raises:
      UserError: if a file, a setting or the model can't be used, or nothing of a file can; that is
        said when all is told.
    """
    if not (files := files or [settings.data.train_json])[0]:
        raise ConfigError("no data: give files, or set data.train_json in the recipe")
    with Signals("ending", leave=True):
        config, tokenizer = _model(settings.source)
        settings = settings.for_model(config)
        sources = [_training_source(settings, file, tokenizer) for file in files]
        if settings.evaluation.every:
            sources.append(_held_out_source(settings, tokenizer))
    sample, told, empty = page.Sample(), [], ""
    with Signals("reading no further") as signals, _listing(output_dir) as list_row:
        for source in sources:
            survey = _survey(source, settings.data.reading_threads, sample, list_row, signals)
            told.append(survey)
            tell(tables.text(survey, settings.data) + "\n")
            if not survey.used and not survey.not_read:
                first = survey.reasons.to_json()[0]["first"]
                empty = empty or f"{source.file}: nothing in it can be used; the first: {first}"
        if output_dir:
            _write(output_dir, settings, told, sample)
    if empty:
        raise DataError(empty)
    return signals.received


def _model(source: str) -> tuple[ModelConfig, Tokenizer]:
    """Returns a model's configuration and tokenizer; its weights need not be there."""
    folder = loading.model_folder(source, weights=False)
    return ModelConfig.from_folder(folder), load_tokenizer(folder)


def _training_source(settings: Settings, file: str, tokenizer: Tokenizer) -> _Source:
    data = dataclasses.replace(settings.data, train_json=file)
    settings = dataclasses.replace(settings, data=data)
    rows = usable.read(settings, usable.refusal(settings))
    learned = settings.grpo is None
    if learned:
        usable.say_misses(file, rows.kept)
    root = data.root(data.image_root)
    prepare = settings.preparer(tokenizer, with_response=learned, image_root=root)
    return _Source(file, *rows, Measure(prepare, root), root)


def _held_out_source(settings: Settings, tokenizer: Tokenizer) -> _Source:
    held_out = settings.evaluation
    if not held_out.benchmark:
        raise ConfigError("evaluation.every is set, but evaluation.benchmark is not: give its path")
    rows = benchmark.choose(benchmark.load_benchmark(held_out.benchmark), held_out.limit)
    name = places.of(held_out.benchmark).name
    examples = [
        dataclasses.replace(
            benchmark.as_example(row, name, direct=held_out.direct),
            targets=(Target(fraction_to_grid(row.answer), row.target_image),),
        )
        for row in rows
    ]
    root = settings.data.root(held_out.image_root)
    prepare = settings.preparer(tokenizer, with_response=False, image_root=root)
    return _Source(held_out.benchmark, examples, [], "", Measure(prepare, root), root)


def _survey(
    source: _Source,
    threads: int,
    sample: page.Sample,
    list_row: Callable[[str, Rejected], None],
    signals: Signals,
) -> Survey:
    """Reads the examples of a file, until a signal comes."""
    survey = Survey(source.file, source.chosen)
    for row in source.left_out:
        survey.reject(row)
        list_row(source.file, row)
    count, done = len(source.examples), 0
    name = places.of(source.file).name
    found = measured(source.examples, source.measure, threads)
    with (
        contextlib.closing(found),
        progress_bar(total=count, desc=name, unit="question", mininterval=1) as bar,
    ):
        while not signals.received and (each := next(found, None)):
            survey.add(each)
            sample.add(name, each, source.root)
            if each.problem:
                example = each.example
                list_row(source.file, Rejected(example.source, example.id, each.problem))
            done += 1
            bar.update()
    survey.not_read, survey.rotated = count - done, len(source.root.rotated)
    return survey


@contextlib.contextmanager
def _listing(output_dir: pathlib.Path | None) -> Iterator[Callable[[str, Rejected], None]]:
    """Yields what appends a row that is left out to rejected.jsonl, which is begun anew."""
    if output_dir is None:
        yield lambda file, row: None
        return
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / "rejected.jsonl"
    lines.remove(path)
    with contextlib.closing(lines.LineWriter(path)) as writer:
        yield lambda file, row: writer.write({"file": file} | dataclasses.asdict(row))


def _write(
    output_dir: pathlib.Path,
    settings: Settings,
    told: Sequence[Survey],
    sample: page.Sample,
) -> None:
    """Writes the page, and its figures as JSON."""
    sections: list[tuple[str, tables.Table]] = []
    figures: dict[str, Any] = {}
    for survey in told:
        made = tables.tables(survey, settings.data)
        of = f", {places.of(survey.file).name}" if len(told) > 1 else ""
        sections += [(heading + of, table) for heading, table in made.items()]
        figures[survey.file] = tables.figures(survey, settings.data)
    page.write(output_dir / "report.html", sections, sample.cards)
    text = json.dumps(figures, indent=1) + "\n"
    outputs.write_text(output_dir / "check.json", text, "--output_dir")
