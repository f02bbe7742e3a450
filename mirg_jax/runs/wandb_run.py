"""A run's scalars and sampled groups for Weights & Biases, if `wandb.project` is set."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mirg_jax.errors import ConfigError, one_line
from mirg_jax.files import outputs, places
from mirg_jax.files.places import Place

_FINISH_SECONDS = 60.0  # for what is still to be sent at a run's end; wandb alone waits for ever
_OFFLINE = ("offline", "disabled", "dryrun")


@dataclasses.dataclass(frozen=True)
class WandbSettings:
    """Where a run is shown; with project="" nowhere."""

    project: str = ""
    entity: str = ""
    name: str = ""


def check(settings: WandbSettings) -> None:
    """Checks, before anything is loaded, that a run can be shown; asks no server.

    Raises:
      ConfigError: if the package is missing, or the key while wandb isn't offline by its own
        settings.
    """
    if not settings.project:
        return
    if importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"wandb.project={settings.project!r} needs the package wandb: "
            "pip install 'wandb>=0.31', or leave the setting out"
        )
    try:
        with _failures_as_os_errors():
            import wandb

            mode = wandb.setup().settings.mode
    except OSError as error:
        raise ConfigError(
            f"wandb.project={settings.project!r}: wandb can't be used ({error.strerror}); check "
            "its WANDB_… variables, or leave the setting out"
        ) from None
    if mode not in _OFFLINE and not os.environ.get("WANDB_API_KEY"):
        raise ConfigError(
            f"wandb.project={settings.project!r}: set WANDB_API_KEY to your key, or "
            "WANDB_MODE=offline to send nothing"
        )


class WandbRun:
    """A run at Weights & Biases, which a resumed run of the same folder goes on with.

    What a killed run had logged may be lost, as wandb writes its file in blocks; so all steps since
    the run was last closed are logged again. A server that has a step already passes over it.

    Args:
      workdir: the run's folder; `wandb.json` in it keeps the ID.
      settings: where the run is shown.
      stage: sft or grpo.
      config: the run's settings as JSON.
      before: the metrics of the steps taken before, as lines of metrics.jsonl.

    Raises:
      OSError: if it can't be opened, for whatever reason; of the methods, if they fail.
    """

    def __init__(
        self,
        workdir: Place,
        settings: WandbSettings,
        *,
        stage: str,
        config: str,
        before: Sequence[Mapping[str, Any]] = (),
    ):
        self._record = workdir / "wandb.json"
        self._facts = _kept(self._record, settings)
        self._step = 0
        with _failures_as_os_errors():
            import wandb

            timeout = {}
            if "WANDB_FINISH_TIMEOUT" not in os.environ:
                timeout["finish_timeout"] = _FINISH_SECONDS
            self._wandb = wandb
            self._run = wandb.init(
                project=settings.project,
                entity=settings.entity or None,
                name=settings.name or workdir.name or None,
                job_type=stage,
                id=self._facts["id"],
                resume="allow",
                # wandb's files lie on a disk; of a run in a store, where WANDB_DIR says.
                dir=str(workdir) if isinstance(workdir, pathlib.Path) else None,
                config=json.loads(config) if config else {},
                allow_val_change=True,
                reinit="create_new",  # beside one of this process that was not closed
                settings=wandb.Settings(
                    console="off", silent=True, save_code=False, disable_git=True, **timeout
                ),
            )
        for row in before:
            if row["step"] > self._facts["closed_at"]:
                self.add(row["step"], flat(row))

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds a step's scalars."""
        with _failures_as_os_errors():
            self._run.log(dict(scalars), step=step)
        self._step = step

    def add_groups(self, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Adds a step's sampled groups as a table.

        Args:
          step: number of steps taken.
          columns: names of the columns.
          rows: their values; PIL images become pictures.
        """
        with _failures_as_os_errors():
            from PIL import Image

            table = self._wandb.Table(columns=list(columns))
            for row in rows:
                table.add_data(
                    *(
                        self._wandb.Image(cell, file_type="jpg")
                        if isinstance(cell, Image.Image)
                        else cell
                        for cell in row
                    )
                )
            self._run.log({"groups": table}, step=step)

    def close(self) -> None:
        """Ends the run there; what couldn't be sent in time stays in wandb's files."""
        with _failures_as_os_errors():
            self._run.finish()
        if self._step:
            self._facts["closed_at"] = self._step
            _keep(self._record, self._facts)


def flat(row: Mapping[str, Any]) -> dict[str, float]:
    """Returns a line of metrics.jsonl as scalars by name, as they are shown beside it.

    Args:
      row: the line; its seconds and speed become `seconds/NAME` and `speed/NAME`, and what was not
        finite is left out.
    """
    parts = ("seconds", "speed")
    found = {name: value for name, value in row.items() if name not in ("step", *parts)}
    for part in parts:
        found |= {f"{part}/{name}": value for name, value in row.get(part, {}).items()}
    return {name: value for name, value in found.items() if value is not None}


def _kept(path: Place, settings: WandbSettings) -> dict[str, Any]:
    """Returns the record of a folder's run, or that of a new one if it has none in this project.

    Raises:
      OSError: if a new one can't be kept.
    """
    where = {"project": settings.project, "entity": settings.entity}
    kept = places.read_object(path) or {}
    known = isinstance(kept.get("id"), str) and type(kept.get("closed_at")) is int
    if known and where.items() <= kept.items():
        return kept
    # The last step before wandb's file was last closed, and so is whole.
    new = where | {"id": uuid.uuid4().hex[:12], "closed_at": 0}
    _keep(path, new)
    return new


def _keep(path: Place, facts: Mapping[str, Any]) -> None:
    outputs.make_folder(path.parent)
    outputs.replace_text(path, json.dumps(facts) + "\n")


@contextlib.contextmanager
def _failures_as_os_errors() -> Iterator[None]:
    """Turns whatever wandb raises into an `OSError`, as of any other file that can't be written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or one_line(error)) from None
    except Exception as error:
        raise OSError(None, f"{type(error).__name__}: {one_line(error)}") from None
