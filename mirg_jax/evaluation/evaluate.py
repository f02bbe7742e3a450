"""A model and a benchmark file → predictions, scores and a report in one folder."""

import contextlib
import dataclasses
import pathlib

from tqdm import tqdm

from mirg_jax.data.examples import Rejected
from mirg_jax.data.images import Root
from mirg_jax.data.pipeline import RejectedLog
from mirg_jax.errors import DataError
from mirg_jax.evaluation.predictions import Predictions, write_results
from mirg_jax.inference.predictor import Predictor
from mirg_jax.mig_bench import families, prompts, scoring
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
    output_dir: pathlib.Path,
    protocol: scoring.Protocol = "answer",
    limit: int = 0,
) -> scoring.Scores:
    """Predicts what isn't predicted yet, scores everything, and writes the report.

    Args:
      settings: how images are read, prompts worded and devices divided.
      checkpoint: what `mirg_jax.load` takes.
      limit: evaluate only so many rows, spread evenly over the file; 0 for all.

    Raises:
      UserError: for a benchmark, checkpoint or setting that can't be used.
    """
    rows = load_benchmark(benchmark)
    chosen = choose(rows, limit)
    family = families.of_coordinates(settings.evaluation.coordinates)
    data = settings.data
    root = data.root(image_root)
    size_of = families.sizes_given(root, data.max_pixels, data.min_pixels)
    devices.start(settings.devices)
    saved = run_folder.find_run(checkpoint)
    first = processes.is_first()
    what = {
        "model": str(checkpoint),
        "step": saved and saved.step,
        "benchmark": benchmark,
        "coordinates": settings.evaluation.coordinates,
        **({"apply_exif": True} if root.apply_exif else {}),
    }
    with Predictions(output_dir, what, len(rows)) if first else contextlib.nullcontext() as kept:
        responses = processes.gather(kept.responses if kept else None)[0]
        open_rows = [
            (row.index, as_example(row_for(family, row, size_of), benchmark))
            for row in chosen
            if responses[row.index] is None
        ]
        if open_rows:
            predictor = Predictor.open(checkpoint, settings, image_root=root)
            rejected = RejectedLog(output_dir / "rejected.jsonl", write=first)
            answers = predictor.predict(open_rows)
            of = {"total": len(open_rows), "unit": "row", "desc": "evaluate"}
            for index, response, error in tqdm(answers, **of, disable=not first):
                if response is None:
                    rejected.add(Rejected(f"{benchmark} row {index}", str(index), error))
                    continue
                responses[index] = response
                if kept:
                    kept.add(index, response)

    read = [families.to_grammar(family, responses[row.index], row, size_of) for row in chosen]
    scores = scoring.score(chosen, read, protocol)
    if first and root.rotated:
        print(f"{len(root.rotated)} images have an EXIF orientation (data.apply_exif)", flush=True)
    if first:
        found = report.Responses(read, scores)
        write_results(output_dir, checkpoint, benchmark, found, chosen, root)
    return scores


def row_for(family: families.Family, row: Row, size_of: families.SizeOf) -> Row:
    """The row with its question's boxes as the family has them.

    Where an image can't be read the row stays as it is: it is rejected, with the reason, when its
    images are loaded.
    """
    try:
        question = prompts.rewrite(family, row.question, row.images, size_of)
    except DataError:
        return row
    return dataclasses.replace(row, question=question)
