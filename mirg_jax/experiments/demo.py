"""The demo: a table at the small scale, with a report of its pictures, curves and scores."""

import json
import pathlib
import resource
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from tqdm import tqdm

from mirg_jax.experiments import tables
from mirg_jax.experiments.figures import gained, summarise
from mirg_jax.experiments.rows import Table
from mirg_jax.mig_bench import scoring
from mirg_jax.mig_bench.benchmark import load_benchmark
from mirg_jax.mig_bench.responses import load_predictions
from mirg_jax.mig_bench.tables import format_table
from mirg_jax.report import report

# What the rows of configs/demo.py are, for readers of the page.
_ABOUT = {
    "base": "the model that training starts from; it knows the pictures and not the tasks",
    "sft": "after learning from annotated reasoning whose boxes are loose, as a person's may be",
    "grpo": "sft after reinforcement learning with rewards from the exact boxes",
    "sft_exact": "for comparison, as sft but learning from exact boxes, which real data seldom has",
}

Chain = dict[str, scoring.Scores]  # by row


def run(table: Table, workdir: pathlib.Path, seeds: Sequence[int]) -> dict[int, Chain]:
    """Runs the table for each seed and writes a summary and a report beside its rows.

    One seed is run in `workdir` itself; several in WORKDIR/seed_N, with WORKDIR/seeds.json.

    Raises:
      UserError: for a setting, data set or model that can't be used.
    """
    chains: dict[int, Chain] = {}
    for seed in seeds:
        folder = workdir if len(seeds) == 1 else workdir / f"seed_{seed}"
        clock = tables.Clock()
        rows = tables.run_seed(table, folder, seed, clock)
        chains[seed] = {row.name: scores for row, scores in rows}
        write_results(table, folder, chains[seed], clock.minutes)
        jax.clear_caches()  # of many seeds, programs would fill what Linux lets a process map
    if len(seeds) > 1:
        (workdir / "seeds.json").write_text(json.dumps(compare(chains), indent=1) + "\n")
    return chains


def write_results(
    table: Table, folder: pathlib.Path, chain: Chain, minutes: Mapping[str, float]
) -> None:
    """Writes summary.json and report.html, and prints the table."""
    summary: dict[str, Any] = {name: summarise(scores) for name, scores in chain.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB → GiB, as Linux counts
    count = next(iter(chain.values())).overall.n
    summary |= {"n_eval": count, "minutes": minutes, "peak_memory_gib": peak}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")

    scenes = folder / "scenes"
    rows = load_benchmark(scenes / "eval.json")
    runs = {
        name: report.Responses(
            load_predictions(folder / name / "eval/predictions.jsonl", len(rows)), scores
        )
        for name, scores in chain.items()
    }
    training = {row.name: folder / row.name for row in table.rows if row.data}
    page = folder / "report.html"
    featured = "grpo" if "grpo" in chain else ""
    more = {"training": training, "featured": featured, "about": _ABOUT}
    report.write_report(page, table.title, rows, runs, scenes, **more)
    tqdm.write("\n" + format_table(chain))
    print(f"\n{sum(minutes.values()):.1f} minutes; pictures and curves: {page}")


def compare(chains: Mapping[int, Chain]) -> dict[str, Any]:
    """What GRPO gained over SFT in all chains together, paired by question."""

    def gain(chosen: Sequence[Chain]) -> dict[str, float]:
        return gained([(chain["grpo"], chain["sft"]) for chain in chosen])

    return {
        "jax": jax.__version__,
        "gain": gain(list(chains.values())),
        "seeds": {
            str(seed): {name: summarise(scores) for name, scores in chain.items()}
            | {"gain": gain([chain])}
            for seed, chain in chains.items()
        },
    }
