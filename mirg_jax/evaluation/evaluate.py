"""Evaluation of a model on a benchmark: writes predictions, scores and a report to a folder."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from mirg_jax.data.image_hashes import ImageHashes
from mirg_jax.data.images import Root
from mirg_jax.errors import ConfigError, DataError
from mirg_jax.evaluation import answering
from mirg_jax.evaluation.predictions import rejected_rows
from mirg_jax.evaluation.results import check_some_answered, write_results
from mirg_jax.files.places import Place
from mirg_jax.inference.predictor import Prediction
from mirg_jax.mig_bench import families, prompts, scoring, versions
from mirg_jax.mig_bench.benchmark import Row, as_example, choose, load_benchmark
from mirg_jax.report import report
from mirg_jax.runs import devices, run_folder
from mirg_jax.runs.settings import Settings
from mirg_jax.sharding import processes


def run(
    settings: Settings,
    *,
    checkpoint: str,
    benchmark: str,
    image_root: Root,
    output_dir: Place,
    protocol: scoring.Protocol = "answer",
    limit: int = 0,
) -> scoring.Scores:
    """Answers the rows that have no prediction yet, scores all of them, and writes a report.

    Args:
      settings: settings for images, prompts, batches and devices.
      checkpoint: the model, as for `mirg_jax.load`.
      benchmark: path of the benchmark file.
      image_root: folder that the benchmark's image paths are relative to.
      output_dir: folder of the results.
      protocol: what is scored.
      limit: number of rows to evaluate, as in `benchmark.choose`; 0: all.

    Raises:
      UserError: if the benchmark, the checkpoint or a setting can't be used.
    """
    if run_folder.find_run(output_dir) is not None:
        raise ConfigError(
            f"--output_dir={output_dir}: is a training run, whose files an evaluation would "
            f"replace; give {output_dir / 'eval'}"
        )
    task = _Task(settings, checkpoint, benchmark, image_root, limit)
    devices.start(settings.devices)
    what: dict[str, Any] = {}
    if processes.is_first():
        what = answering.facts_of(settings, checkpoint, benchmark)
    answers = answering.collect(
        task.chosen,
        task.answers,
        folder=output_dir,
        facts=what,
        count=len(task.rows),
        images=task.images,
        left_out=functools.partial(rejected_rows, benchmark),
    )
    said = [answers.responses[row.index] for row in task.chosen]
    check_some_answered(output_dir, said, answers.rejected)
    found = task.score(said, protocol)
    if processes.is_first():
        task.write(output_dir, found, what["benchmark_sha256"])
    return found.scores


class _Task:
    """A model, and the rows of a benchmark that it is to answer.

    Attributes:
      rows: all rows of the benchmark.
      chosen: those that are asked.
      images: hashes of their images.
    """

    def __init__(
        self, settings: Settings, checkpoint: str, benchmark: str, image_root: Root, limit: int
    ):
        data = settings.data
        self._settings, self._checkpoint, self._benchmark = settings, checkpoint, benchmark
        self._direct = settings.evaluation.direct
        self._family = families.of_coordinates(settings.evaluation.coordinates)
        self._root = data.root(image_root)
        self._size_of = families.sizes_given(self._root, data.max_pixels, data.min_pixels)
        self.rows = load_benchmark(benchmark)
        self.chosen = choose(self.rows, limit)
        self.images = ImageHashes(self._root)

    def answers(self, missing: Sequence[int]) -> Iterator[Prediction]:
        """Yields the model's answers, and why a question can't be asked."""
        questions = []
        for index in missing:
            try:
                asked = row_for(self._family, self.rows[index], self._size_of)
            except prompts.UnclearQuestionError as error:
                yield Prediction(index, None, str(error))
            else:
                example = as_example(asked, self._benchmark, direct=self._direct)
                questions.append((index, example))
        how = {"unit": "row", "desc": "evaluate", "image_root": self._root}
        yield from answering.ask(questions, self._checkpoint, self._settings, **how)

    def score(self, said: Sequence[str | None], protocol: scoring.Protocol) -> report.Responses:
        """Reads and scores the responses to the chosen rows."""
        read, unreadable = families.read_responses(self._family, self.chosen, said, self._size_of)
        how = {"unreadable": unreadable, "direct": self._direct}
        scores = scoring.score(self.chosen, read, protocol, **how)
        return report.Responses(read, scores)

    def write(self, folder: Place, found: report.Responses, benchmark_sha256: str) -> None:
        """Writes the results, and says how many images have an EXIF orientation."""
        if rotated := self._root.rotated:
            print(f"{len(rotated)} images have an EXIF orientation (data.apply_exif)", flush=True)
        content = self.images.of_rows(row.images for row in self.chosen)
        name = versions.name_of(self.rows)
        more = {"benchmark_sha256": benchmark_sha256, "benchmark_name": name, "images": content}
        of = self._checkpoint, self._benchmark
        write_results(folder, *of, found, self.chosen, self._root, **more)


def row_for(family: families.Family, row: Row, size_of: families.SizeOf) -> Row:
    """Rewrites the boxes in a row's question in the family's form.

    A row whose image can't be read is returned unchanged; it is rejected, with the reason, when its
    images are loaded.

    Args:
      family: the family.
      row: the row.
      size_of: function from an image's path to its size as the model gets it.

    Raises:
      UnclearQuestionError: if it isn't clear which image a box of the question is in.
    """
    try:
        question = prompts.rewrite(family, row.question, row.images, size_of)
    except prompts.UnclearQuestionError:
        raise
    except DataError:
        return row
    return dataclasses.replace(row, question=question)
