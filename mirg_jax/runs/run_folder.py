"""What is in a run's folder: which checkpoint is meant, and its arrays.

A run's folder holds `model/` (config.json, tokenizer), `checkpoints/STEP/` (Orbax: `params`,
`train`, `data`) and its logs.
"""

import contextlib
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from mirg_jax.errors import CheckpointError
from mirg_jax.runs import metrics


class SavedStep(NamedTuple):
    """A checkpoint of a run: the run's folder, and the step that it was saved at."""

    run: pathlib.Path
    step: int

    @property
    def folder(self) -> pathlib.Path:
        return self.run / "checkpoints" / str(self.step)

    @property
    def model_folder(self) -> pathlib.Path:
        """The run's folder with config.json and tokenizer."""
        return self.run / "model"


def find_run(source: str | pathlib.Path) -> SavedStep | None:
    """Finds the checkpoint that `source` means; None if it is no run and none of its checkpoints.

    Args:
      source: a run's folder (its latest step is meant), RUN/checkpoints/STEP, or RUN/best.

    Raises:
      CheckpointError: for the best of a run that was never evaluated.
    """
    path = pathlib.Path(source).absolute()
    if path.name == "best" and (path.parent / "checkpoints").is_dir():
        step = best_of(metrics.held_out(path.parent), steps(path.parent / "checkpoints"))
        if step is None:
            raise CheckpointError(
                f"{path.parent}: no checkpoint was evaluated in training, so none is the best; "
                "name a step, or train with config.evaluation.every"
            )
        return SavedStep(path.parent, step)
    if path.parent.name == "checkpoints" and path.name.isdigit() and path.is_dir():
        return SavedStep(path.parent.parent, int(path.name))
    if found := steps(path / "checkpoints"):
        return SavedStep(path, max(found))
    return None


def best_of(accuracies: Mapping[int, float], steps: Iterable[int]) -> int | None:
    """Picks the most accurate step, the latest of equals; None if none was evaluated."""
    return max(
        (s for s in steps if s in accuracies), key=lambda s: (accuracies[s], s), default=None
    )


def exactly(source: str | pathlib.Path) -> str:
    """Names what `source` means now, wherever and whenever it is read: a checkpoint or a folder."""
    if saved := find_run(source):
        return str(saved.folder)
    path = pathlib.Path(source)
    return str(path.absolute() if path.exists() else source)


def steps(folder: pathlib.Path) -> list[int]:
    """Lists the steps at which a whole checkpoint was written."""
    return ocp.utils.checkpoint_steps(folder) if folder.is_dir() else []


def restore_params(checkpoint: pathlib.Path, state: nnx.State) -> nnx.State:
    """A checkpoint's parameters, in the shapes, dtypes and shardings of `state`.

    Raises:
      CheckpointError: if it holds others, or is damaged.
    """
    wanted = nnx.to_pure_dict(state)
    with reading(checkpoint, "model", "give the run's own model folder or another checkpoint"):
        check_shapes(checkpoint / "params", wanted)
        with ocp.StandardCheckpointer() as checkpointer:
            pure = checkpointer.restore(checkpoint / "params", wanted)
    return from_pure(state, pure)


def from_pure(state: nnx.State, pure: Any) -> nnx.State:
    """The nested dictionaries that Orbax restores, as `state` is built."""
    leaves, structure = jax.tree.flatten(state)
    restored = jax.tree.leaves(pure)
    if len(leaves) != len(restored):
        raise CheckpointError("the checkpoint holds another set of parameters")
    return jax.tree.unflatten(structure, restored)


def pytree_handler() -> ocp.PyTreeCheckpointHandler:
    """Writes each array from one device that holds it.

    By default Orbax divides it among all that do, for which every shape is compiled a program of
    its own; with small arrays that takes longer than all the writing.
    """
    arrays = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    registry = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, arrays), (np.ndarray, ocp.type_handlers.NumpyHandler())
    )
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


class _Misfit(Exception):
    """A checkpoint holds other arrays than are wanted."""


def check_shapes(folder: pathlib.Path, wanted: Any) -> None:
    """Raises _Misfit if an array is saved in another shape; nothing is read for it."""
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


@contextlib.contextmanager
def reading(checkpoint: pathlib.Path, what: str, remedy: str):
    """Turns errors inside into one line: the checkpoint doesn't fit, or it is damaged."""
    try:
        yield
    except _Misfit as error:
        raise CheckpointError(
            f"{checkpoint}: the checkpoint doesn't fit this {what} ({error}); {remedy}"
        ) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        older = [s for s in steps(checkpoint.parent) if s < int(checkpoint.name)]
        before = max(older, default=None)
        use = "there is no older one" if before is None else f"delete it to use step {before}"
        raise CheckpointError(
            f"{checkpoint}: the checkpoint is damaged ({reason(error)}); {use}"
        ) from None


def reason(error: Exception) -> str:
    """Shortens what Orbax and TensorStore say to a few words."""
    known = (
        "No space left on device|Disk quota exceeded|File too large|Read-only file system|"
        "Permission denied|Input/output error"
    )
    if found := re.search(known, str(error)):
        return found[0]
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
