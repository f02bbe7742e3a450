"""Records of the settings that parts of a table were made with, so that none is kept for others."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from mirg_jax.errors import ConfigError
from mirg_jax.experiments.rows import TableRow
from mirg_jax.runs import facts, run_folder

# What changes neither the data nor what is learned from it: where things lie (their content is
# compared instead), how work is divided, what is logged.
_NOT_COMPARED = (
    "init_from",
    "model.path",
    "model.remat",
    "model.attention",
    "data.train_json",
    "data.image_root",
    "data.threads",
    "evaluation",
    "checkpoint",
    "profile",
    "mesh",
    "sampling",
    "cpu_devices",
    "rows_per_micro_batch",
    "prompts_per_micro_batch",
    "logprob_chunk",
    "grpo.log_groups",
    "grpo.log_groups_every",
    # Of trajectories:
    "concurrency",
    "retries",
    "backoff",
    "max_dollars",
    "page_examples",
)
# The same in any part of a config.
_NOT_COMPARED_FIELDS = (
    "base_url",
    "key_variable",
    "timeout",
    "requests_per_minute",
    "tokens_per_minute",
    "prompt_price",
    "completion_price",
    "expected_tokens",
    "tokens_per_image",
)


def check(
    path: pathlib.Path,
    wanted: Mapping[str, Any],
    *,
    made: bool,
    write: bool = True,
    of_earlier: Callable[[], Mapping[str, Any]] = dict,
    unrecorded: Mapping[str, Any] | None = None,
) -> None:
    """Records what a part of a table depends on, or compares it with the record.

    Args:
      path: the record, in the folder of the part.
      wanted: what the part depends on now.
      made: whether the part exists, at least in part; if not, the record is written.
      write: whether this process writes it.
      of_earlier: returns what can be told of a part that an earlier version made without a record.
      unrecorded: what records of earlier versions don't say, as it was always so.

    Raises:
      ConfigError: if the part was made with other settings.
      CheckpointError: if the record can't be read.
    """
    wanted = json.loads(json.dumps(wanted))  # with JSON's types
    if not made:
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(wanted, indent=1) + "\n")
        return
    remedy = f"delete {path.parent} to make that part again"
    found = run_folder.read_record(path, run_folder.as_object, "a part's settings", remedy)
    if found is None:
        found = of_earlier()
    found = {**(unrecorded or {}), **found}
    if changes := facts.describe_settings(found, wanted):
        raise ConfigError(
            f"{path.parent}: was made with other settings ({'; '.join(changes)}); delete it, or "
            "give another --workdir"
        )


def facts_of_row(row: TableRow, recipe: ConfigDict) -> dict[str, Any]:
    """Returns what the training of a row depends on.

    Args:
      row: the row.
      recipe: its recipe, with the paths of its data and its start.
    """
    return facts_of_config(recipe) | {
        "train_json_sha256": facts.hash_rows(recipe.data.train_json),
        "start": facts.hash_model(recipe.init_from or recipe.model.path),
    }


def facts_of_run(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns what a run's folder itself tells of its settings."""
    found = run_folder.read_record(
        workdir / "config.json", run_folder.as_object, "a run's settings"
    )
    return _compared(found or {})


def facts_of_config(config: ConfigDict) -> dict[str, Any]:
    """Returns the settings that results depend on, by dotted name."""
    return _compared(json.loads(config.to_json_best_effort()))


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in facts.flat(config).items()
        if not any(f"{name}.".startswith(f"{other}.") for other in _NOT_COMPARED)
        and not {*name.split(".")} & {*_NOT_COMPARED_FIELDS}
    }


def facts_of_scenes(scenes: pathlib.Path) -> dict[str, Any]:
    """Returns how many scenes of each kind a folder holds."""
    files = {"sft": "sft.json", "rl": "rl.json", "evaluation": "eval.json"}
    return {
        name: len(json.loads((scenes / file).read_text(encoding="utf-8")))
        for name, file in files.items()
        if (scenes / file).exists()
    }
