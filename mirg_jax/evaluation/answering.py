"""Asking a model questions, and keeping every answer in a folder as soon as it is there."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from mirg_jax.data.examples import Example, Rejected
from mirg_jax.data.image_hashes import ImageHashes
from mirg_jax.errors import UserError
from mirg_jax.evaluation.predictions import Predictions
from mirg_jax.files.places import Place
from mirg_jax.files.streams import progress_bar, say
from mirg_jax.inference.predictor import Prediction, Predictor, read_own_settings
from mirg_jax.runs import facts, run_folder
from mirg_jax.runs.settings import Settings
from mirg_jax.sharding import processes


class Asked(Protocol):
    """What an answer is to: its number, and the images that it is about."""

    @property
    def index(self) -> int: ...

    @property
    def images(self) -> tuple[str, ...]: ...


class Answers(NamedTuple):
    """What there is after a model was asked.

    Attributes:
      responses: by number, None where there is none.
      rejected: why numbers got none in this run.
    """

    responses: list[str | None]
    rejected: dict[int, str]


class _Plan(NamedTuple):
    """What the first process tells the others: the responses so far, and what is missing."""

    responses: list[str | None]
    missing: list[int]


def collect(
    asked: Sequence[Asked],
    answers: Callable[[Sequence[int]], Iterable[Prediction]],
    *,
    folder: Place,
    facts: Mapping[str, Any],
    count: int,
    images: ImageHashes,
    left_out: Callable[[Mapping[int, str]], Sequence[Rejected]],
) -> Answers:
    """Gets the answers that a folder doesn't have yet, and keeps each as soon as it comes.

    All processes call this together; the first one writes. A signal to stop ends them in order.

    Args:
      asked: what is to be answered.
      answers: yields the answers to some of it, by their numbers; others are taken too, if the
        folder hasn't got them.
      folder: the folder of the results.
      facts: what the answers depend on; {} in other processes than the first.
      count: number of answers that the folder may have.
      images: hashes of the images.
      left_out: returns the lines of rejected.jsonl, given the reasons of numbers without an answer.

    Raises:
      UserError: if the folder can't be used, or the model.
    """
    rejected: dict[int, str] = {}
    about = {each.index: each.images for each in asked}
    with contextlib.ExitStack() as stack:
        kept = plan = None
        if processes.is_first():
            kept = stack.enter_context(Predictions(folder, facts, count))
            kept.check_images(asked, images)
            plan = _Plan(kept.responses, [each.index for each in kept.missing(asked)])
            stack.callback(lambda: kept.write_rejected(left_out(rejected)))
        first_plan, *_ = processes.gather(plan)
        responses, missing = _Plan(*first_plan)
        with processes.Signals("ending; the answers so far are kept", leave=True) as signals:
            for index, response, error in answers(missing):
                if response is None:
                    rejected[index] = str(error)
                elif responses[index] is None:
                    responses[index] = response
                    if kept:
                        kept.add(index, response, images=images.of(about[index]))
                signals.leave_if_received()
    return Answers(responses, rejected)


def ask(
    questions: Sequence[tuple[int, Example]],
    checkpoint: str,
    settings: Settings,
    *,
    unit: str,
    desc: str,
    **opened: Any,
) -> Iterator[Prediction]:
    """Opens a model, if there are questions, and yields its answers, with a progress bar.

    Args:
      questions: numbered, as for `Predictor.predict`.
      checkpoint: the model.
      settings: how it is asked.
      unit: what the bar counts.
      desc: what the bar says.
      opened: further arguments of `Predictor.open`.
    """
    if not questions:
        return
    first = processes.is_first()
    if first:
        _say_other_inputs(checkpoint, settings)
        say("loading the model; the first answers wait for its programs to compile")
    predictor = Predictor.open(checkpoint, settings, **opened)
    bar = {"total": len(questions) * opened.get("samples", 1), "unit": unit, "desc": desc}
    yield from progress_bar(predictor.predict(questions), **bar, disable=not first)


def facts_of(settings: Settings, checkpoint: str, benchmark: str) -> dict[str, Any]:
    """Returns what a model's answers depend on, for run.json.

    Args:
      settings: the settings of the evaluation.
      checkpoint: the model.
      benchmark: path of the benchmark file.
    """
    saved = run_folder.find_run(checkpoint)
    return {
        "model": str(checkpoint),
        "step": saved and saved.step,
        "benchmark": benchmark,
        "coordinates": settings.evaluation.coordinates,
        "weights": facts.hash_model(checkpoint),
        "benchmark_sha256": facts.hash_rows(benchmark),
        **facts.of_inputs(settings),
        "max_tokens": settings.evaluation.max_tokens,
    }


def _say_other_inputs(checkpoint: str, settings: Settings) -> None:
    """Says in a line if a run is asked with another prompt or other pixels than it learned from."""
    with contextlib.suppress(UserError):  # whoever loads it says what is wrong
        own = read_own_settings(checkpoint)
        own = dataclasses.replace(
            own,
            evaluation=dataclasses.replace(own.evaluation, direct=settings.evaluation.direct),
        )
        own, now = (facts.of_inputs(each) for each in (own, settings))
        del own["compute_dtype"]
        if run_folder.find_run(checkpoint) and (changes := facts.describe_changes(own, now)):
            say(
                f"{checkpoint}: is asked otherwise than it was trained: {'; '.join(changes)}; "
                "its own settings are in its config.json"
            )
