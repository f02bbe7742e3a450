"""A table of experiments: every row is trained and evaluated, for every seed.

What is there already isn't done again, so an interrupted table goes on where it stopped. A file
`made_with.json` beside each part says what it was made with; other settings are refused.
"""

import json
import pathlib
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import jax
from ml_collections import ConfigDict

from mirg_jax.errors import ConfigError
from mirg_jax.evaluation import evaluate
from mirg_jax.experiments import records
from mirg_jax.experiments.figures import Results, Training, of_training, to_json
from mirg_jax.experiments.rows import Table, TableData, TableRow
from mirg_jax.files import lines
from mirg_jax.files.streams import say
from mirg_jax.mig_bench import scoring
from mirg_jax.runs import devices, loading, metrics, run_folder, settings
from mirg_jax.scenes.scene_tasks import TASKS, write_dataset
from mirg_jax.training import grpo, sft
from mirg_jax.trajectories import build
from mirg_jax.trajectories import settings as trajectory_settings


class Clock:
    """Counts the minutes spent in each part of a table, and says when one begins."""

    def __init__(self):
        self.minutes: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        print(f"\n== {name} ==", flush=True)
        start = time.perf_counter()
        yield
        self.minutes[name] = round((time.perf_counter() - start) / 60, 2)


def prepare(table: Table, folder: pathlib.Path, seed: int, clock: Clock) -> TableData:
    """Returns the table's data; where it draws scenes, those of this seed, drawn and annotated."""
    if table.data is not None:
        return table.data
    scenes, seed = folder / "scenes", table.first_seed + seed
    is_made = (scenes / "eval.json").exists()
    records.check(
        scenes / "made_with.json",
        {"seed": seed, "tasks": table.tasks, **table.scenes},
        made=is_made,
        of_earlier=lambda: records.facts_of_scenes(scenes),
        unrecorded={"tasks": "training"},
    )
    if not is_made:
        with clock.time("scenes"):
            write_dataset(scenes, seed=seed, tasks=table.tasks, **table.scenes)
    for name in sorted({row.annotator for row in table.rows if row.data not in ("", "rl")}):
        annotator = table.annotators[name].copy_and_resolve_references()
        annotator.scenes.seed = seed
        weights = annotator.select.weights.to_dict()
        annotator.select.weights = ConfigDict(dict.fromkeys(TASKS[table.tasks], 1.0) | weights)
        is_made = (scenes / name / "summary.json").exists()
        now = records.facts_of_config(annotator)
        records.check(scenes / name / "made_with.json", now, made=is_made)
        if is_made:
            continue
        with clock.time(f"trajectories: {name}"):
            build.build(
                trajectory_settings.read(annotator),
                source=str(scenes / "sft.json"),
                image_root=str(scenes),
                output_dir=scenes / name,
            )
    return TableData(
        trajectories={name: str(scenes / name) for name in table.annotators},
        rl_json=str(scenes / "rl.json"),
        image_root=str(scenes),
        benchmark=str(scenes / "eval.json"),
        benchmark_images=str(scenes),
        errors={name: annotator.scenes.error for name, annotator in table.annotators.items()},
    )


def run_row(
    row: TableRow, data: TableData, folder: pathlib.Path, seed: int, clock: Clock
) -> scoring.Scores:
    """Trains a row, from the row that it starts from, and evaluates it, in FOLDER/NAME."""
    recipe, workdir = row.recipe_of(seed), folder / row.name
    model = recipe.model.path
    if row.data:
        model = str(workdir)
        recipe.data.image_root = data.image_root
        recipe.data.train_json = data.rl_json
        if row.data != "rl":
            trajectories = pathlib.Path(data.trajectories[row.annotator])
            recipe.data.train_json = str(trajectories / f"{row.data}.jsonl")
        if row.start:
            recipe.init_from = str(folder / row.start)
        devices.start(settings.read(recipe).devices)
        found = run_folder.find_run(workdir)
        records.check(
            workdir / "made_with.json",
            records.facts_of_row(row, recipe),
            made=found is not None,
            write=jax.process_index() == 0,
            of_earlier=lambda: records.facts_of_run(workdir),
        )
        if found is None or found.step < recipe.num_steps:
            stage = settings.read(recipe).stage
            train = {"sft": sft.train, "grpo": grpo.train}[stage]
            with clock.time(row.title):
                if row.data != "rl":
                    _say_error(data.errors.get(row.annotator, 0.0))
                train(settings.read_for_training(recipe, stage), workdir)
    with clock.time(f"evaluate {row.title}"):
        return evaluate.run(
            settings.read(recipe),
            checkpoint=model,
            benchmark=data.benchmark,
            image_root=data.benchmark_images,
            output_dir=workdir / "eval",
        )


def _say_error(error: float) -> None:
    """Says that an annotator errs, since training then says how many responses miss a target."""
    if error:
        say(
            f"the annotator is imprecise on purpose (each side of a box up to {error:g} sides too "
            "far out), as real ones are: some responses will miss a target of their row"
        )


def run_seed(
    table: Table, folder: pathlib.Path, seed: int, clock: Clock
) -> Iterator[tuple[TableRow, scoring.Scores]]:
    """Runs all rows for one seed, and yields each row's scores as soon as they are there.

    Raises:
      UserError: for a setting, data set or model that can't be used.
    """
    for path in dict.fromkeys(row.recipe.model.path for row in table.rows):
        loading.model_config(path)  # a wrong one is told before anything is made
    data = prepare(table, folder, seed, clock)
    for row in table.rows:
        yield row, run_row(row, data, folder, seed, clock)


def run(table: Table, workdir: pathlib.Path, seeds: Iterable[int]) -> Results:
    """Runs all rows for all seeds; WORKDIR/table.json has what there is after each.

    Raises:
      UserError: for a setting, data set or model that can't be used.
    """
    results: Results = {row.name: {} for row in table.rows}
    training: Training = {}
    for seed in seeds:
        print(f"\n==== seed {seed} ====", flush=True)
        folder = workdir / f"seed_{seed}"
        for row, scores in run_seed(table, folder, seed, Clock()):
            results[row.name][seed] = scores
            trained = str(folder / row.name)
            # The first process writes the metrics, perhaps on a disk of its own.
            if row.data and lines.exists(metrics.path_in(trained)):
                training[row.name, seed] = of_training(metrics.read(trained))
            text = json.dumps(to_json(table.title, table.rows, results, training), indent=1)
            (workdir / "table.json").write_text(text + "\n")
            # On a CPU each program of jax 0.11 is hundreds of mappings, and Linux allows 65,530.
            jax.clear_caches()
    return results


def run_alone(table: Table, workdir: pathlib.Path, seeds: Iterable[int], name: str) -> None:
    """Runs one row for all seeds, in the folders of `run`.

    Raises:
      UserError: if there is no such row, or for what can't be used.
    """
    found = [row for row in table.rows if row.name == name]
    if not found:
        names = ", ".join(row.name for row in table.rows)
        raise ConfigError(f"--row={name}: is none of the table's rows: {names}")
    for seed in seeds:
        folder, clock = workdir / f"seed_{seed}", Clock()
        run_row(found[0], prepare(table, folder, seed, clock), folder, seed, clock)
