"""A table of experiments: every row trained and evaluated, for every seed.

What is there already isn't done again, so an interrupted table goes on where it stopped.
"""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mirg_jax.errors import ConfigError
from mirg_jax.evaluation import evaluate
from mirg_jax.mig_bench import intervals, scoring
from mirg_jax.runs import run_folder, settings
from mirg_jax.scenes.scene_tasks import write_dataset
from mirg_jax.training import grpo, sft
from mirg_jax.trajectories import build
from mirg_jax.trajectories import settings as trajectory_settings

Results = dict[str, dict[int, scoring.Scores]]  # by row and seed


def check(config: ConfigDict) -> None:
    """Raises ConfigError for rows that can't be run, before any is."""
    seen = set()
    for name in config.order:
        if name not in config.rows:
            raise ConfigError(f"order: there is no row {name!r}: {', '.join(config.rows)}")
        row = config.rows[name]
        if row.recipe not in config.recipes:
            raise ConfigError(f"rows.{name}.recipe={row.recipe!r} is none of config.recipes")
        if row.start and row.start not in seen:
            raise ConfigError(f"rows.{name}.start={row.start!r} is no row before it in order")
        recipe_of(config, name, seed=0)
        seen.add(name)
    if not config.scenes.evaluation:
        for field, value in config.data.items():
            if not value:
                raise ConfigError(f"config.data.{field} is not set")


def recipe_of(config: ConfigDict, name: str, seed: int) -> ConfigDict:
    """A row's recipe with its changes."""
    row = config.rows[name]
    recipe = config.recipes[row.recipe].copy_and_resolve_references().lock()
    try:
        recipe.update(row.changes)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"rows.{name}.changes: {error}") from None
    recipe.seed = seed
    return recipe


def prepare(config: ConfigDict, folder: pathlib.Path, seed: int) -> ConfigDict:
    """The table's data; where it is of scenes, those of this seed, drawn and annotated."""
    if not config.scenes.evaluation:
        return config.data
    counts, scenes = config.scenes.to_dict(), folder / "scenes"
    seed += counts.pop("first_seed")
    annotated = scenes / "annotated"
    if not (scenes / "eval.json").exists():
        write_dataset(scenes, seed=seed, **counts)
    if not (annotated / "summary.json").exists():
        annotator = config.annotator.copy_and_resolve_references()
        annotator.scenes.seed = seed
        build.build(
            trajectory_settings.read(annotator),
            source=str(scenes / "sft.json"),
            image_root=str(scenes),
            output_dir=annotated,
        )
    return ConfigDict(
        {
            "trajectories": str(annotated),
            "rl_json": str(scenes / "rl.json"),
            "image_root": str(scenes),
            "benchmark": str(scenes / "eval.json"),
            "benchmark_images": str(scenes),
        }
    )


def run_row(
    config: ConfigDict, name: str, data: ConfigDict, folder: pathlib.Path, seed: int
) -> scoring.Scores:
    """Trains a row, from the row that it starts from, and evaluates it."""
    row, recipe = config.rows[name], recipe_of(config, name, seed)
    workdir = folder / name
    model = recipe.model.path
    if row.data:
        model = str(workdir)
        recipe.data.image_root = data.image_root
        if row.data == "rl":
            recipe.data.train_json = data.rl_json
        else:
            recipe.data.train_json = str(pathlib.Path(data.trajectories) / f"{row.data}.jsonl")
        if row.start:
            recipe.init_from = str(folder / row.start)
        found = run_folder.find_run(workdir)
        if found is None or found[1] < recipe.num_steps:
            stage = "grpo" if "grpo" in recipe else "sft"
            train = {"sft": sft.train, "grpo": grpo.train}[stage]
            train(settings.read_for_training(recipe, stage), workdir)
    return evaluate.run(
        settings.read(recipe),
        checkpoint=model,
        benchmark=data.benchmark,
        image_root=data.benchmark_images,
        output_dir=workdir / "eval",
    )


def run(config: ConfigDict, workdir: pathlib.Path, seeds: Iterable[int]) -> Results:
    """Runs all rows for all seeds; WORKDIR/table.json has what there is after each.

    Raises:
      UserError: for a config, data set or model that can't be used.
    """
    check(config)
    results: Results = {name: {} for name in config.order}
    for seed in seeds:
        folder = workdir / f"seed_{seed}"
        data = prepare(config, folder, seed)
        for name in config.order:
            print(f"\n== {config.rows[name].title}, seed {seed} ==", flush=True)
            results[name][seed] = run_row(config, name, data, folder, seed)
            # On a CPU each program of jax 0.11 is hundreds of mappings, and Linux allows 65,530.
            jax.clear_caches()
            text = json.dumps(to_json(config, results), indent=1)
            (workdir / "table.json").write_text(text + "\n")
    return results


# What they show -----------------------------------------------------------------------------------


def to_json(config: ConfigDict, results: Results) -> dict[str, Any]:
    """All figures: of each row and seed, and what each row gained over the one it starts from."""
    rows = {}
    for name, by_seed in results.items():
        row = config.rows[name]
        rows[name] = {
            "title": row.title,
            "paper": list(row.paper),
            "seeds": {str(seed): figures(scores) for seed, scores in by_seed.items()},
        }
        before = before_it(config, name)
        if before and (paired := by_seed.keys() & results.get(before, {}).keys()):
            gain = gained([(by_seed[seed], results[before][seed]) for seed in sorted(paired)])
            rows[name]["gain"] = {"over": before, **gain}
    return {"title": config.title, "rows": rows}


def before_it(config: ConfigDict, name: str) -> str:
    """The row that a row is trained from: of those from a base model, that base; else none."""
    if start := config.rows[name].start:
        return start
    model = recipe_of(config, name, seed=0).model.path
    for other in config.order:
        untrained = not config.rows[other].data
        if untrained and recipe_of(config, other, seed=0).model.path == model:
            return other if other != name else ""
    return ""


def figures(scores: scoring.Scores) -> dict[str, Any]:
    """What is kept of an evaluation; accuracies are fractions of 1."""
    return {
        "n": scores.overall.n,
        "spontaneous": scores.spontaneous,
        "referential": scores.referential,
        "average": scores.average,
        **summarise(scores),
    }


def summarise(scores: scoring.Scores) -> dict[str, Any]:
    """The main figures of an evaluation; accuracies are fractions of 1."""
    overall = scores.overall
    return {
        "acc": overall.accuracy[0.5],
        "acc_75": overall.accuracy[0.75],
        "mean_iou": overall.mean_iou,
        "image_acc": overall.image_accuracy,
        "format_rate": overall.format_rate,
        "by_task": {name: task.hit_rate for name, task in scores.tasks.items()},
    }


def gained(pairs: Iterable[tuple[scoring.Scores, scoring.Scores]]) -> dict[str, float]:
    """Hit rate of the first less that of the second, over all rows of all pairs."""
    after, before = (
        np.array([row.hit for scores in side for row in scores.rows])
        for side in zip(*pairs, strict=True)
    )
    found = intervals.paired_bootstrap(after, before)
    return {"mean": found.mean, "low_95": found.low, "high_95": found.high}


def to_markdown(table: Mapping[str, Any]) -> str:
    """Per cent: means over the seeds with their range, beside the paper's."""
    columns = ("spontaneous", "referential", "average")
    lines = [
        "| | Spontaneous | Referential | AVE | mean IoU | image | format | paper: S, R, AVE |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in table["rows"].values():
        seeds = list(row["seeds"].values())
        if not seeds:
            continue
        cells = [row["title"]]
        for name in (*columns, "mean_iou", "image_acc", "format_rate"):
            values = [100 * seed[name] for seed in seeds if seed[name] is not None]
            cells.append(_mean_and_range(values))
        cells.append(", ".join(f"{value:.2f}" for value in row["paper"]) or "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean_and_range(values: list[float]) -> str:
    if not values:
        return "-"
    mean = f"{sum(values) / len(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f} to {max(values):.1f})"
