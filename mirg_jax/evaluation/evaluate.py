"""A model and a benchmark file → predictions, scores and a report in one folder."""

import json
import os
import pathlib

from ml_collections import ConfigDict
from tqdm import tqdm

from mirg_jax import processes
from mirg_jax.data.examples import Rejected
from mirg_jax.data.pipeline import RejectedLog
from mirg_jax.evaluation import coordinates, report, scoring
from mirg_jax.evaluation.predict import predict, questions
from mirg_jax.evaluation.predictions import claim, drop_torn_line, write_results
from mirg_jax.training import checkpoint as load
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
      checkpoint: what `checkpoint.load_model` takes.
      limit: evaluate only so many rows, spread evenly over the file; 0 for all.

    Raises:
      UserError: for a benchmark, checkpoint or setting that can't be used.
    """
    rows = scoring.load_benchmark(benchmark)
    chosen = scoring.spread(len(rows), limit)
    pixels, asked = coordinates.check(config), list(rows)
    if pixels:
        sizes = {index: coordinates.sizes(rows[index], image_root, config) for index in chosen}
        for index, given in sizes.items():
            question = coordinates.question_in_pixels(rows[index], given)
            asked[index] = rows[index] | {"question": question}
    mesh, how = setup.for_sampling(config)
    step = load.find_run(checkpoint)
    path = output_dir / "predictions.jsonl"
    responses: list[str | None] = [None] * len(rows)
    if first := processes.is_first():
        claim(
            output_dir,
            {"model": str(checkpoint), "step": step and step[1], "benchmark": benchmark},
        )
        if path.exists():
            drop_torn_line(path)
            if path.stat().st_size:
                responses = scoring.load_predictions(path, len(rows))
    responses = processes.gather(responses)[0]  # what the first process has found

    asked = questions(asked, benchmark)
    open_rows = [asked[index] for index in chosen if responses[index] is None]
    if open_rows:
        model = load.load_model(checkpoint, mesh, **how)
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
        with path.open("a") if first else open(os.devnull, "w") as file:
            for answer in tqdm(
                answers, total=len(open_rows), unit="row", desc="evaluate", disable=not first
            ):
                if answer.response is None:
                    rejected.add(
                        Rejected(f"{benchmark} row {answer.index}", str(answer.index), answer.error)
                    )
                    continue
                responses[answer.index] = answer.response
                line = {"index": answer.index, "response": answer.response}
                file.write(json.dumps(line) + "\n")
                file.flush()

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
