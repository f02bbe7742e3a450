"""A model and a benchmark file → predictions, scores and a report in one folder."""

import contextlib
import pathlib

from tqdm import tqdm

from mirg_jax.data.examples import Rejected
from mirg_jax.data.pipeline import RejectedLog
from mirg_jax.evaluation.predictions import Predictions, write_results
from mirg_jax.inference.predict import questions
from mirg_jax.inference.predictor import Predictor
from mirg_jax.mig_bench import coordinates, scoring
from mirg_jax.report import report
from mirg_jax.runs import devices, run_folder
from mirg_jax.runs.settings import Settings
from mirg_jax.sharding import processes


def run(
    settings: Settings,
    *,
    checkpoint: str,
    benchmark: str,
    image_root: str,
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
    rows = scoring.load_benchmark(benchmark)
    chosen = scoring.spread(len(rows), limit)
    pixels, asked = settings.evaluation.coordinates == "pixels", list(rows)
    if pixels:
        limits = settings.data.min_pixels, settings.data.max_pixels
        sizes = {index: coordinates.sizes(rows[index], image_root, *limits) for index in chosen}
        for index, given in sizes.items():
            question = coordinates.question_in_pixels(rows[index], given)
            asked[index] = rows[index] | {"question": question}
    devices.start(settings.devices)
    saved = run_folder.find_run(checkpoint)
    first = processes.is_first()
    what = {
        "model": str(checkpoint),
        "step": saved and saved.step,
        "benchmark": benchmark,
        "coordinates": settings.evaluation.coordinates,
    }
    with Predictions(output_dir, what, len(rows)) if first else contextlib.nullcontext() as kept:
        responses = processes.gather(kept.responses if kept else None)[0]
        asked = questions(asked, benchmark)
        open_rows = [asked[index] for index in chosen if responses[index] is None]
        if open_rows:
            predictor = Predictor.open(checkpoint, settings, image_root=image_root)
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

    read = list(responses)
    if pixels:
        for index, given in sizes.items():
            read[index] = coordinates.response_on_grid(rows[index], read[index], given)
    rows, read = ([every[index] for index in chosen] for every in (rows, read))
    scores = scoring.score(rows, read, protocol)
    if first:
        found = report.Run(read, scores)
        write_results(output_dir, checkpoint, benchmark, chosen, found, rows, image_root)
    return scores
