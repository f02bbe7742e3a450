"""Runs the whole method with a small model: scenes, trajectories, SFT, GRPO, evaluation, report.

    python scripts/demo.py --workdir=runs/demo

Writes WORKDIR/summary.json, report.html, and a folder for each stage. With several --seeds,
everything is run for each seed, on new training and evaluation scenes, and WORKDIR/seeds.json has
the gain of GRPO over SFT, paired by question.
"""

import json
import pathlib
import resource
import time

import jax
from absl import flags
from tqdm import tqdm

from configs import grpo_tiny, sft_tiny, trajectories_scenes
from mirg_jax import cli
from mirg_jax.evaluation import evaluate
from mirg_jax.experiments import tables
from mirg_jax.mig_bench import scoring
from mirg_jax.report import report
from mirg_jax.runs.settings import read, read_for_training
from mirg_jax.scenes.scene_tasks import write_dataset
from mirg_jax.training import grpo, sft
from mirg_jax.trajectories import build

_WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "Folder where all results are written.")
_BASE = flags.DEFINE_string(
    "base", "assets/small_base", "Hugging Face folder of the model that SFT starts from."
)
_QUICK = flags.DEFINE_bool(
    "quick",
    False,
    "Train only 10 steps per stage: a few minutes, too short to learn, but a complete report.",
)
_SEEDS = flags.DEFINE_list(
    "seeds", ["0"], "Random seeds, separated by commas; all stages are run for each."
)
_N_EVAL = flags.DEFINE_integer(
    "n_eval", 770, "Number of held-out questions, divided evenly among the seven tasks."
)

# Seeds of the scenes begin here, so that they differ from those that recipes were tuned on.
_FIRST_SEED = 1000


class Clock:
    """Records the minutes spent in each stage."""

    def __init__(self):
        self.minutes: dict[str, float] = {}

    def time(self, name, function, *args, **kwargs):
        print(f"\n== {name} ==", flush=True)
        start = time.perf_counter()
        result = function(*args, **kwargs)
        self.minutes[name] = round((time.perf_counter() - start) / 60, 2)
        return result


def recipes(scenes: pathlib.Path, seed: int):
    """Returns the two tiny recipes with these scenes as data; shortened for --quick."""
    stages = {"sft": sft_tiny.get_config(), "grpo": grpo_tiny.get_config()}
    for config in stages.values():
        config.seed = seed
        config.model.path = _BASE.value
        config.data.image_root = str(scenes)
        if _QUICK.value:
            config.num_steps = 10
    stages["sft"].data.train_json = str(scenes / "annotated/grounded.jsonl")
    stages["grpo"].data.train_json = str(scenes / "rl.json")
    return stages


def annotate(scenes: pathlib.Path, name: str, seed: int, error: float | None = None) -> None:
    """Writes SFT's trajectories to SCENES/NAME, with the built-in scene teacher."""
    config = trajectories_scenes.get_config()
    config.scenes.seed = _FIRST_SEED + seed
    if error is not None:
        config.scenes.error = error
    build.build(
        config, source=str(scenes / "sft.json"), image_root=str(scenes), output_dir=scenes / name
    )


def run_chain(workdir: pathlib.Path, seed: int) -> dict[str, scoring.Scores]:
    """Runs all stages with one seed and returns the scores of each model."""
    clock = Clock()
    scenes = workdir / "scenes"
    stages = recipes(scenes, seed)
    n_eval = 70 if _QUICK.value else _N_EVAL.value
    n_sft, n_rl = (
        config.batch_size * min(config.num_steps, 120) for config in (stages["sft"], stages["grpo"])
    )
    if not (scenes / "eval.json").exists():
        clock.time(
            "scenes", write_dataset, scenes, seed=_FIRST_SEED + seed, sft=n_sft, rl=n_rl,
            evaluation=n_eval,
        )  # fmt: skip
    # Trajectories with the annotator's loose boxes, and, for comparison, with exact boxes.
    clock.time("trajectories", annotate, scenes, "annotated", seed)
    clock.time("exact trajectories", annotate, scenes, "exact", seed, error=0.0)

    def test(name: str, checkpoint: pathlib.Path | str) -> scoring.Scores:
        return clock.time(
            f"evaluate {name}",
            evaluate.run,
            read(stages["grpo"]),
            checkpoint=str(checkpoint),
            benchmark=str(scenes / "eval.json"),
            image_root=str(scenes),
            output_dir=workdir / "eval" / name,
        )

    scores = {"base": test("base", stages["sft"].model.path)}
    clock.time("sft", sft.train, read_for_training(stages["sft"], "sft"), workdir / "sft")
    scores["sft"] = test("sft", workdir / "sft")
    stages["grpo"].init_from = str(workdir / "sft")
    clock.time("grpo", grpo.train, read_for_training(stages["grpo"], "grpo"), workdir / "grpo")
    scores["grpo"] = test("grpo", workdir / "grpo")
    # For comparison: the same SFT on exact boxes.
    exact = stages["sft"].copy_and_resolve_references()
    exact.data.train_json = str(scenes / "exact/grounded.jsonl")
    exact = read_for_training(exact, "sft")
    clock.time("sft on exact boxes", sft.train, exact, workdir / "sft_exact")
    scores["sft_exact"] = test("sft_exact", workdir / "sft_exact")

    write_results(workdir, scores, clock.minutes)
    jax.clear_caches()  # with many seeds, compiled programs would exceed Linux's limit on mappings
    return scores


def write_results(workdir: pathlib.Path, scores: dict, minutes: dict) -> None:
    """Writes summary.json and the report, and prints the table of scores."""
    summary = {name: tables.summarise(result) for name, result in scores.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB → GiB, as Linux counts
    summary |= {"n_eval": scores["sft"].overall.n, "minutes": minutes, "peak_memory_gib": peak}
    (workdir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")

    scenes = workdir / "scenes"
    rows = scoring.load_benchmark(scenes / "eval.json")
    runs = {
        name: report.Run(
            scoring.load_predictions(workdir / "eval" / name / "predictions.jsonl", len(rows)),
            result,
        )
        for name, result in scores.items()
    }
    training = {stage: workdir / stage for stage in ("sft", "sft_exact", "grpo")}
    report.write_report(
        workdir / "report.html", "mirg_jax demo", rows, runs, scenes, training=training
    )
    tqdm.write("\n" + scoring.format_table(scores))
    print(f"\n{sum(minutes.values()):.1f} minutes; pictures and curves: {workdir}/report.html")


def compare(chains: dict[str, dict[str, scoring.Scores]]) -> dict:
    """Returns the gain of GRPO over SFT over all seeds together, paired by question."""

    def gain(chosen) -> dict[str, float]:
        return tables.gained((scores["grpo"], scores["sft"]) for scores in chosen)

    return {
        "jax": jax.__version__,
        "gain": gain(chains.values()),
        "seeds": {
            seed: {stage: tables.summarise(result) for stage, result in scores.items()}
            | {"gain": gain([scores])}
            for seed, scores in chains.items()
        },
    }


def main(_):
    workdir = pathlib.Path(_WORKDIR.value)
    if len(_SEEDS.value) == 1:
        run_chain(workdir, int(_SEEDS.value[0]))
        return
    chains = {seed: run_chain(workdir / f"seed_{seed}", int(seed)) for seed in _SEEDS.value}
    result = compare(chains)
    (workdir / "seeds.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["gain"], indent=1))


if __name__ == "__main__":
    cli.run(main)
