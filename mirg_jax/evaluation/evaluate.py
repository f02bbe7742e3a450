"""Evaluation of a model on a benchmark: writes predictions, scores and a report to a folder."""

import contextlib
import dataclasses
from typing import Any, NamedTuple

from tqdm import tqdm

from mirg_jax.data.images import Root
from mirg_jax.errors import ConfigError, DataError, UserError
from mirg_jax.evaluation.predictions import Predictions, write_results
from mirg_jax.files.places import Place
from mirg_jax.inference.predictor import Predictor
from mirg_jax.mig_bench import families, prompts, scoring
from mirg_jax.mig_bench.benchmark import Row, as_example, choose, load_benchmark
from mirg_jax.report import report
from mirg_jax.runs import devices, facts, run_folder
from mirg_jax.runs.settings import Settings
from mirg_jax.sharding import processes


class _Plan(NamedTuple):
    """What the first process tells the others: the responses so far, and the rows to answer."""

    responses: list[str | None]
    missing: list[int]


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
    rows = load_benchmark(benchmark)
    chosen = choose(rows, limit)
    family = families.of_coordinates(settings.evaluation.coordinates)
    data = settings.data
    root = data.root(image_root)
    size_of = families.sizes_given(root, data.max_pixels, data.min_pixels)
    devices.start(settings.devices)
    first = processes.is_first()
    rejected: dict[int, str] = {}
    with contextlib.ExitStack() as stack:
        kept = plan = None
        if first:
            what = facts_of(settings, checkpoint, benchmark)
            kept = stack.enter_context(Predictions(output_dir, what, len(rows)))
            images = facts.ImageHashes(root)
            kept.check_images(chosen, images)
            plan = _Plan(kept.responses, [row.index for row in kept.missing(chosen)])
            stack.callback(kept.write_rejected, rejected, benchmark)
        first_plan, *_ = processes.gather(plan)
        responses, missing = _Plan(*first_plan)
        still_open = set(missing)
        questions = [
            (row.index, as_example(row_for(family, row, size_of), benchmark))
            for row in chosen
            if row.index in still_open
        ]
        if questions:
            predictor = Predictor.open(checkpoint, settings, image_root=root)
            answers = predictor.predict(questions)
            of = {"total": len(questions), "unit": "row", "desc": "evaluate"}
            for index, response, error in tqdm(answers, **of, disable=not first):
                if response is None:
                    rejected[index] = error
                    continue
                responses[index] = response
                if kept:
                    kept.add(index, response, images=images.of(rows[index].images))

    said = [responses[row.index] for row in chosen]
    if all(response is None for response in said):
        reason = next(iter(rejected.values()), f"see {output_dir / 'rejected.jsonl'}")
        raise UserError(f"no row has an answer; the first: {reason}")
    read, unreadable = families.read_responses(family, chosen, said, size_of)
    scores = scoring.score(chosen, read, protocol, unreadable=unreadable)
    if first and root.rotated:
        print(f"{len(root.rotated)} images have an EXIF orientation (data.apply_exif)", flush=True)
    if first:
        found = report.Responses(read, scores)
        content = {"benchmark_sha256": what["benchmark_sha256"]}
        write_results(output_dir, checkpoint, benchmark, found, chosen, root, **content)
    return scores


def facts_of(settings: Settings, checkpoint: str, benchmark: str) -> dict[str, Any]:
    """Returns what a model's answers depend on, for run.json.

    Args:
      settings: the settings of the evaluation.
      checkpoint: the model.
      benchmark: path of the benchmark file.
    """
    data, saved = settings.data, run_folder.find_run(checkpoint)
    return {
        "model": str(checkpoint),
        "step": saved and saved.step,
        "benchmark": benchmark,
        "coordinates": settings.evaluation.coordinates,
        "weights": facts.hash_model(checkpoint),
        "benchmark_sha256": facts.hash_file(benchmark),
        **{f"prompt.{name}": text for name, text in dataclasses.asdict(settings.prompt).items()},
        "min_pixels": data.min_pixels,
        "max_pixels": data.max_pixels,
        "apply_exif": data.apply_exif,
        "max_tokens": settings.evaluation.max_tokens,
        "compute_dtype": str(settings.model.precision.compute),
    }


def row_for(family: families.Family, row: Row, size_of: families.SizeOf) -> Row:
    """Rewrites the boxes in a row's question in the family's form.

    A row whose image can't be read is returned unchanged; it is rejected, with the reason, when its
    images are loaded.

    Args:
      family: the family.
      row: the row.
      size_of: function from an image's path to its size as the model gets it.
    """
    try:
        question = prompts.rewrite(family, row.question, row.images, size_of)
    except DataError:
        return row
    return dataclasses.replace(row, question=question)
