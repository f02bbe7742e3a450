"""A model and a benchmark file → predictions, scores and a report in one folder."""

import contextlib
import dataclasses
import pathlib

from ml_collections import ConfigDict
from tqdm import tqdm

from mirg_jax.data.examples import Rejected
from mirg_jax.data.pipeline import RejectedLog
from mirg_jax.errors import DataError
from mirg_jax.evaluation.predictions import Predictions, write_results
from mirg_jax.inference.predict import predict
from mirg_jax.mig_bench import families, prompts, scoring
from mirg_jax.mig_bench.benchmark import Row, as_example, choose, load_benchmark
from mirg_jax.report import report
from mirg_jax.runs import loading, run_folder
from mirg_jax.sharding import processes
from mirg_jax.training import setup


def run(
    config: ConfigDict,
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
      checkpoint: what `loading.load_model` takes.
      limit: evaluate only so many rows, spread evenly over the file; 0 for all.

    Raises:
      UserError: for a benchmark, checkpoint or setting that can't be used.
    """
    rows = load_benchmark(benchmark)
    chosen = choose(rows, limit)
    family = families.of_coordinates(config.evaluation.coordinates)
    size_of = families.sizes_given(image_root, config.data.max_pixels, config.data.min_pixels)
    mesh, how = setup.for_sampling(config)
    step = run_folder.find_run(checkpoint)
    first = processes.is_first()
    what = {
        "model": str(checkpoint),
        "step": step and step[1],
        "benchmark": benchmark,
        "coordinates": config.evaluation.coordinates,
    }
    with Predictions(output_dir, what, len(rows)) if first else contextlib.nullcontext() as kept:
        responses = processes.gather(kept.responses if kept else None)[0]
        open_rows = [
            (row.index, as_example(row_for(family, row, size_of), benchmark))
            for row in chosen
            if responses[row.index] is None
        ]
        if open_rows:
            model = loading.load_model(checkpoint, mesh, **how)
            tokenizer = setup.load_tokenizer(model.folder)
            config.data.image_root = image_root
            preparer = setup.make_preparer(config, tokenizer, with_response=False)
            rejected = RejectedLog(output_dir / "rejected.jsonl", write=first)
            answers = predict(
                model,
                tokenizer,
                preparer,
                mesh,
                open_rows,
                batch_size=config.evaluation.batch_size,
                max_tokens=config.evaluation.max_tokens,
            )
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
    if first:
        found = report.Run(read, scores)
        write_results(output_dir, checkpoint, benchmark, found, chosen, image_root)
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
