"""What a LoRA run is built on, written down: WORKDIR/lora.json.

Its checkpoints hold adapters and no base. The base is named as it was when the run began, down to
the step, so that the run resumes and is loaded on the very weights it was trained on.
"""

import dataclasses
import json
import pathlib

import jax

from mirg_jax.errors import CheckpointError
from mirg_jax.models.lora import Lora


@dataclasses.dataclass(frozen=True)
class Record:
    """The base (a checkpoint, a Hugging Face folder or a hub name), its dtype, the adapters."""

    base: str
    param_dtype: str
    lora: Lora


def path_in(run: pathlib.Path) -> pathlib.Path:
    return run / "lora.json"


def read(run: pathlib.Path) -> Record | None:
    """The record of a run's folder; None if it isn't a LoRA run.

    Raises:
      CheckpointError: for a file that isn't such a record.
    """
    path = path_in(run)
    if not path.exists():
        return None
    try:
        raw = json.loads(path.read_text())
        lora = raw.pop("lora")
        return Record(**raw, lora=Lora(**lora | {"targets": tuple(lora["targets"])}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: not a record of a LoRA run ({error}); restore it from a copy of the run"
        ) from None


def write(run: pathlib.Path, record: Record | None) -> None:
    """Leaves this record in a run's folder, or none."""
    path = path_in(run)
    if record is None:
        path.unlink(missing_ok=True)
        return
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(dataclasses.asdict(record), indent=1) + "\n")
    partial.replace(path)


def claim(run: pathlib.Path, wanted: Record | None, *, resumes: bool) -> Record | None:
    """The record that a run starts from: `wanted`, written down, or the one it began with.

    Raises:
      CheckpointError: when the run began with other adapters, or without.
    """
    if not resumes:
        if jax.process_index() == 0:
            write(run, wanted)
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
