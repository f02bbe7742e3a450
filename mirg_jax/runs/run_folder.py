"""Finding a run's checkpoints, and reading their arrays.

A run's folder contains `model/` (config.json, tokenizer), `checkpoints/STEP/` (in Orbax's format:
`params`, `train`, `data`) and logs.
"""

import contextlib
import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from mirg_jax.errors import CheckpointError, UserError
from mirg_jax.files import places
from mirg_jax.files.places import Place
from mirg_jax.runs import metrics

T = TypeVar("T")


class SavedStep(NamedTuple):
    """A checkpoint of a run: the run's folder, and the step at which it was saved."""

    run: Place
    step: int

    @property
    def folder(self) -> Place:
        """The checkpoint's folder."""
        return self.run / "checkpoints" / str(self.step)

    @property
    def model_folder(self) -> Place:
        """The run's folder with config.json and tokenizer."""
        return self.run / "model"


def find_run(source: str | Place) -> SavedStep | None:
    """Finds the checkpoint that a path refers to.

    Args:
      source: a run's folder (for its latest step), RUN/checkpoints/STEP, or RUN/best.

    Returns:
      The checkpoint, or None if `source` is neither a run nor a checkpoint of one.

    Raises:
      CheckpointError: for RUN/best, if the run was never evaluated; or if the folder can't be read.
      ConfigError: if `source` is a URL of a store that can't be reached.
    """
    path = places.absolute(places.of(source, "model"))
    if path.name == "best" and _is_folder(path.parent / "checkpoints"):
        step = best_of(metrics.held_out(path.parent), steps(path.parent / "checkpoints"))
        if step is None:
            raise CheckpointError(
                f"{path.parent}: no checkpoint was evaluated in training, so the best is unknown; "
                "name a step, or train with config.evaluation.every"
            )
        return SavedStep(path.parent, step)
    if path.parent.name == "checkpoints" and path.name.isdigit() and _is_folder(path):
        return SavedStep(path.parent.parent, int(path.name))
    if found := steps(path / "checkpoints"):
        return SavedStep(path, max(found))
    return None


def best_of(accuracies: Mapping[int, float], steps: Iterable[int]) -> int | None:
    """Returns the step with the highest accuracy (the latest of equals); None if none has one."""
    return max(
        (s for s in steps if s in accuracies), key=lambda s: (accuracies[s], s), default=None
    )


def exactly(source: str | Place) -> str:
    """Resolves `source` to an absolute path or a hub name that stays valid later.

    A run is resolved to its current checkpoint, which may not be its latest one later.
    """
    if saved := find_run(source):
        return str(saved.folder)
    if places.is_url(source):
        return str(source)
    path = pathlib.Path(source)
    return str(path.absolute() if path.exists() else source)


def steps(folder: Place) -> list[int]:
    """Returns the steps with a complete checkpoint in a `checkpoints` folder.

    Raises:
      CheckpointError: if the folder can't be read.
    """
    with _asking(folder):
        return ocp.utils.checkpoint_steps(folder) if places.is_folder(folder) else []


def _is_folder(path: Place) -> bool:
    with _asking(path):
        return places.is_folder(path)


@contextlib.contextmanager
def _asking(folder: Place):
    """Turns errors in a `with` block that asks what is in a folder into a `CheckpointError`."""
    try:
        with places.reached(folder):
            yield
    except OSError as error:
        raise _unreadable(folder, error.strerror or reason(error)) from None


def _unreadable(folder: Place, why: str) -> CheckpointError:
    remedy = "let this user read it"
    if places.is_url(folder):
        remedy = "check the address, the connection and the credentials, and run again"
    return CheckpointError(f"{folder}: can't be read ({why}); {remedy}")


def restore_params(checkpoint: Place, state: nnx.State) -> nnx.State:
    """Restores a checkpoint's parameters with the dtypes and shardings of `state`.

    Raises:
      CheckpointError: if the checkpoint is damaged or its parameters have other names or shapes.
    """
    wanted = nnx.to_pure_dict(state)
    with reading(checkpoint, "model", "give the run's own model folder or another checkpoint"):
        check_shapes(checkpoint / "params", wanted)
        with ocp.StandardCheckpointer() as checkpointer:
            pure = checkpointer.restore(checkpoint / "params", wanted)
    return from_pure(state, pure)


def from_pure(state: nnx.State, pure: Any) -> nnx.State:
    """Converts the nested dictionaries restored by Orbax to the structure of `state`."""
    leaves, structure = jax.tree.flatten(state)
    restored = jax.tree.leaves(pure)
    if len(leaves) != len(restored):
        raise CheckpointError("the checkpoint holds another set of parameters")
    return jax.tree.unflatten(structure, restored)


def pytree_handler() -> ocp.PyTreeCheckpointHandler:
    """Returns an Orbax handler that writes each array from one of the devices that hold it.

    By default Orbax splits the writing of a replicated array among its devices, and compiles a
    program for every shape; with small arrays that takes longer than the writing itself.
    """
    arrays = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    registry = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, arrays), (np.ndarray, ocp.type_handlers.NumpyHandler())
    )
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


class _Misfit(Exception):
    """The arrays of a checkpoint have other names or shapes than expected."""


def check_shapes(folder: Place, wanted: Any) -> None:
    """Checks that a checkpoint has the wanted arrays in the wanted shapes; reads metadata only.

    Raises:
      _Misfit: if an array is missing, has another shape, or is not wanted.
    """
    written = pytree_handler().metadata(folder).tree
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(written)
    }
    for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if (found := shapes.get(name)) != tuple(leaf.shape):
            what = "missing" if found is None else f"{found}"
            raise _Misfit(f"{name} is {what} there, not {tuple(leaf.shape)}")
        del shapes[name]
    if shapes:
        raise _Misfit(f"{min(shapes)} is there, and is not wanted")


def dtypes(folder: Place) -> set[str]:
    """Returns the dtypes of a checkpoint's arrays; reads metadata only."""
    return {str(leaf.dtype) for leaf in jax.tree.leaves(pytree_handler().metadata(folder).tree)}


@contextlib.contextmanager
def reading(checkpoint: Place, what: str, remedy: str):
    """Turns errors in a `with` block that reads a checkpoint into a `CheckpointError`.

    Args:
      checkpoint: the checkpoint's folder.
      what: what the checkpoint should match, for the message: "config" or "model".
      remedy: what the user should do if it doesn't match.

    Raises:
      CheckpointError: if the checkpoint doesn't match, may not be read, or is damaged.
    """
    try:
        yield
    except _Misfit as error:
        raise CheckpointError(
            f"{checkpoint}: the checkpoint doesn't fit this {what} ({error}); {remedy}"
        ) from None
    except (UserError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        damaged = isinstance(error, (ValueError, KeyError, TypeError, FileNotFoundError))
        if not (damaged or isinstance(error, OSError) or places.is_url(checkpoint)):
            raise
        if isinstance(error, PermissionError) or reason(error) == "Permission denied":
            raise _unreadable(checkpoint, "Permission denied") from None
        # Which fails too, if a store can't be reached: then nothing is damaged.
        older = [s for s in steps(checkpoint.parent) if s < int(checkpoint.name)]
        if places.is_url(checkpoint) and not damaged:
            raise _unreadable(checkpoint, reason(error)) from None
        before = max(older, default=None)
        use = "there is no older one" if before is None else f"delete it to use step {before}"
        raise CheckpointError(
            f"{checkpoint}: the checkpoint is damaged ({reason(error)}); {use}"
        ) from None


def reason(error: Exception) -> str:
    """Shortens an error message of Orbax or TensorStore to a few words."""
    known = (
        "No space left on device|Disk quota exceeded|File too large|Read-only file system|"
        "Permission denied|Input/output error"
    )
    if found := re.search(known, str(error)):
        return found[0]
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def read_record(
    path: Place,
    parse: Callable[[Any], T],
    what: str,
    remedy: str = "restore it from a copy of the run",
) -> T | None:
    """Reads a JSON record in a run's folder.

    Args:
      path: the file.
      parse: makes the record from the file's JSON.
      what: what is recorded, for the message.
      remedy: what the user should do if the file holds something else.

    Returns:
      The record; None if there is no such file.

    Raises:
      CheckpointError: if the file can't be read, or is not a valid record.
    """
    try:
        return parse(json.loads(places.read_bytes(path)))
    except FileNotFoundError:
        return None
    except OSError as error:
        told = places.remedy(path, "let this user read it")
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); {told}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a record of {what} ({error}); {remedy}") from None


def as_record(kind: Callable[..., T], raw: Any) -> T:
    """Makes a dataclass from a JSON object; for `read_record`.

    Fields that it doesn't have, as those of a later version, are ignored.

    Args:
      kind: the dataclass.
      raw: the object.

    Raises:
      TypeError: if it is no object, or a field is missing or of another type.
    """
    raw, values = as_object(raw), {}
    for field in dataclasses.fields(kind):
        if field.name in raw:
            values[field.name] = value = raw[field.name]
            types = (int, float) if field.type is float else (field.type,)
            if field.type in (bool, int, float, str) and type(value) not in types:
                raise TypeError(f"{field.name} is {json.dumps(value)[:60]}")
        elif field.default is dataclasses.MISSING:
            raise TypeError(f"it has no {field.name!r}")
    return kind(**values)


def as_object(raw: Any) -> dict[str, Any]:
    """Returns a JSON object itself; for `read_record`.

    Raises:
      TypeError: if it is something else.
    """
    if not isinstance(raw, dict):
        raise TypeError("no JSON object")
    return raw
