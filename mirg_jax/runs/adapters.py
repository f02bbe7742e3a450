"""The base model and adapter settings of a LoRA run, recorded in WORKDIR/lora.json.

A LoRA run's checkpoints contain adapters only. The record names the base exactly, including the
checkpoint's step, so that the run is always resumed and loaded with the weights it was trained on.
"""

import dataclasses
import json
import pathlib
from typing import Any

from mirg_jax.errors import CheckpointError
from mirg_jax.files import outputs, places
from mirg_jax.files.places import Place
from mirg_jax.models.lora import Lora
from mirg_jax.runs import run_folder


@dataclasses.dataclass(frozen=True)
class Record:
    """The base model and adapter settings of a LoRA run."""

    base: str  # a checkpoint, a Hugging Face folder or a hub name
    param_dtype: str  # dtype of the base's parameters in training
    lora: Lora


def path_in(run: Place) -> Place:
    """Returns the path of the record in a run's folder."""
    return run / "lora.json"


def read(run: Place) -> Record | None:
    """Reads the record in a run's folder.

    Returns:
      The record, or None if the run is not a LoRA run.

    Raises:
      CheckpointError: if the file is not a valid record.
    """

    def parse(raw: Any) -> Record:
        raw = run_folder.as_object(raw)
        if "lora" in raw:
            lora = run_folder.as_object(raw["lora"])
            lora |= {"targets": tuple(lora.get("targets", Lora.targets))}
            raw |= {"lora": run_folder.as_record(Lora, lora)}
        return run_folder.as_record(Record, raw)

    return run_folder.read_record(path_in(run), parse, "a LoRA run")


def write(run: Place, record: Record | None) -> None:
    """Writes a record to a run's folder; with None, removes any record there."""
    path = path_in(run)
    if record is None:
        if isinstance(path, pathlib.Path):
            path.unlink(missing_ok=True)
        else:
            places.remove(path)
        return
    outputs.replace_text(path, json.dumps(dataclasses.asdict(record), indent=1) + "\n")


def claim(run: Place, wanted: Record | None, *, resumes: bool) -> Record | None:
    """Returns a run's record, after checking that of a run to resume.

    Args:
      run: the run's folder.
      wanted: the record for the current settings; None without LoRA.
      resumes: whether the folder has a checkpoint to resume from.

    Returns:
      `wanted` for a new run; for a resumed one its own record, which names the base it began with.

    Raises:
      CheckpointError: if the resumed run has other adapter settings, or only one of both uses LoRA.
    """
    if not resumes:
        return wanted
    found = read(run)
    if found is None and wanted is None:
        return None
    if not (found and wanted) or dataclasses.replace(found, base=wanted.base) != wanted:
        raise CheckpointError(
            f"{run}: its checkpoints were made with {_words(found)}, the config asks for "
            f"{_words(wanted)}; use the config it was made with, or another --workdir"
        )
    return found


def _words(record: Record | None) -> str:
    return f"{record.lora} on {record.param_dtype}" if record else "no LoRA"
