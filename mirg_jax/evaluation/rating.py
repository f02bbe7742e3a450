"""Rating of training rows by how well a model answers them, several times each."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mirg_jax.data import ratings
from mirg_jax.data.answers import why_unusable
from mirg_jax.data.examples import Example, Rejected, read_examples
from mirg_jax.data.image_hashes import ImageHashes
from mirg_jax.data.images import Root
from mirg_jax.errors import ConfigError, DataError
from mirg_jax.evaluation import answering
from mirg_jax.evaluation.results import check_some_answered
from mirg_jax.files import outputs
from mirg_jax.files.places import Place
from mirg_jax.files.streams import say
from mirg_jax.inference.predictor import Prediction
from mirg_jax.runs import devices, run_folder
from mirg_jax.runs.settings import Settings
from mirg_jax.sharding import processes

_MOST = 2**31  # numbers of answers, which random keys are made of


class _Answer(NamedTuple):
    """An answer's number, and the images that it is about."""

    index: int
    images: tuple[str, ...]


class Sampling(NamedTuple):
    """How answers are drawn."""

    answers: int  # to each row
    temperature: float
    seed: int


def run(
    settings: Settings,
    sampling: Sampling,
    *,
    checkpoint: str,
    rows: str,
    image_root: Root,
    output_dir: Place,
) -> list[dict[str, Any]]:
    """Answers rows several times each, and writes their ratings to OUTPUT_DIR/ratings.jsonl.

    Answers are kept in predictions.jsonl, numbered through; those that are there are not drawn
    again. Rows that can't be rated are listed in rejected.jsonl.

    Args:
      settings: settings for images, prompts, batches and devices.
      sampling: how answers are drawn.
      checkpoint: the model, as for `mirg_jax.load`.
      rows: path of the training rows.
      image_root: folder that their image paths are relative to.
      output_dir: folder of the results.

    Returns:
      The ratings, of the rows that could be answered.

    Raises:
      UserError: if the rows, the checkpoint or a setting can't be used.
    """
    if run_folder.find_run(output_dir) is not None:
        raise ConfigError(
            f"--output_dir={output_dir}: is a training run; give {output_dir / 'ratings'}"
        )
    if settings.evaluation.coordinates != "grid":
        raise ConfigError(
            f"evaluation.coordinates={settings.evaluation.coordinates!r}: only answers on the grid "
            "are rated; leave it out"
        )
    direct, count = settings.evaluation.direct, sampling.answers
    examples, unusable = _read(rows, direct)
    first = _first_number(len(examples), sampling)
    devices.start(settings.devices)

    def answers(missing: Sequence[int]) -> Iterator[Prediction]:
        asked = sorted({number // count for number in missing})
        questions = [(first + row, examples[row]) for row in asked]
        how = {"image_root": image_root, "temperature": sampling.temperature, "samples": count}
        bar = {"unit": "answer", "desc": "rate"}
        for found in answering.ask(questions, checkpoint, settings, **bar, **how):
            yield found._replace(index=found.index - first * count)

    def left_out(reasons: Mapping[int, str]) -> list[Rejected]:
        by_row = {number // count: reason for number, reason in sorted(reasons.items())}
        failed = [(examples[row], reason) for row, reason in by_row.items()]
        return unusable + [Rejected(each.source, each.id, reason) for each, reason in failed]

    facts = {}
    if processes.is_first():
        facts = answering.facts_of(settings, checkpoint, rows) | sampling._asdict()
    numbered = enumerate(each.images for each in examples for _ in range(count))
    found = answering.collect(
        [_Answer(*each) for each in numbered],
        answers,
        folder=output_dir,
        facts=facts,
        count=len(examples) * count,
        images=ImageHashes(image_root),
        left_out=left_out,
    )
    check_some_answered(output_dir, found.responses, found.rejected)
    rated = _rated(examples, found.responses, count, direct)
    if processes.is_first():
        text = "".join(json.dumps(row) + "\n" for row in rated)
        outputs.write_text(output_dir / "ratings.jsonl", text, "--output_dir")
        _say_left_out(rows, left_out(found.rejected), output_dir)
    return rated


def _read(path: str, direct: bool) -> tuple[list[Example], list[Rejected]]:
    """Returns the rows that can be rated, with the form of answer asked for, and the others.

    Raises:
      DataError: if the file can't be read, or no row can be rated.
    """
    examples, unusable = read_examples(path)
    kept = []
    for example in examples:
        if reason := why_unusable(example, len(example.targets)):
            unusable.append(Rejected(example.source, example.id, reason))
        else:
            kept.append(dataclasses.replace(example, direct=direct))
    if not kept:
        raise DataError(
            f"{path}: holds no row with targets; the first: {unusable[0].source}: "
            f"{unusable[0].reason}"
        )
    return kept, unusable


def _say_left_out(path: str, rows: Sequence[Rejected], output_dir: Place) -> None:
    """Says in a line how many rows have no rating, and why the first has none."""
    if rows:
        source = f"{rows[0].source}: "  # which some reasons begin with
        say(
            f"{path}: {len(rows)} rows can't be rated and are left out; the first: "
            f"{source}{rows[0].reason.removeprefix(source)}; all are in "
            f"{output_dir / 'rejected.jsonl'}"
        )


def _first_number(count: int, sampling: Sampling) -> int:
    """Returns the first row's number, which the keys of its answers are made of."""
    first, most = sampling.seed * count, _MOST // (count * sampling.answers)
    if sampling.seed >= most:
        raise ConfigError(
            f"--seed={sampling.seed}: with {count * sampling.answers} answers it must be below "
            f"{most}"
        )
    return first


def _rated(
    examples: Sequence[Example], responses: Sequence[str | None], count: int, direct: bool
) -> list[dict[str, Any]]:
    said = [
        [text for text in responses[at : at + count] if text is not None]
        for at in range(0, len(responses), count)
    ]
    answered = [(example, own) for example, own in zip(examples, said, strict=True) if own]
    kept, texts = zip(*answered, strict=True)
    return ratings.rate(kept, texts, direct=direct)
