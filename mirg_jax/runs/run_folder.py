"""What lies in a run's folder: which checkpoint is meant, and its arrays.

A run's folder holds `model/` (config.json, tokenizer), `checkpoints/STEP/` (Orbax: `params`,
`train`, `data`) and its logs.
"""

import contextlib
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from mirg_jax.errors import CheckpointError
from mirg_jax.runs import metrics


def find_run(source: str | pathlib.Path) -> tuple[pathlib.Path, int] | None:
    """The run folder and step that `source` means, if it is a run or one of its checkpoints."""
    path = pathlib.Path(source).absolute()
    if path.name == "best" and (path.parent / "checkpoints").is_dir():
        step = best_of(metrics.held_out(path.parent), steps(path.parent / "checkpoints"))
        if step is None:
            raise CheckpointError(
                f"{path.parent}: no checkpoint was evaluated in training, so none is the best; "
                "name a step, or train with config.evaluation.every"
            )
        return path.parent, step
    if path.parent.name == "checkpoints" and path.name.isdigit() and path.is_dir():
        return path.parent.parent, int(path.name)
    if found := steps(path / "checkpoints"):
        return path, max(found)
    return None


def best_of(accuracies: Mapping[int, float], steps: Iterable[int]) -> int | None:
    """Of these steps, the one with the highest accuracy, the latest of equals."""
    return max(
        (s for s in steps if s in accuracies), key=lambda s: (accuracies[s], s), default=None
    )


def folder_of(run: tuple[pathlib.Path, int]) -> pathlib.Path:
    """The checkpoint's folder of what `find_run` finds."""
    return run[0] / "checkpoints" / str(run[1])


def exactly(source: str | pathlib.Path) -> str:
    """What `source` means now, wherever and whenever it is read: a run's checkpoint, a folder."""
    if run := find_run(source):
        return str(folder_of(run))
    path = pathlib.Path(source)
    return str(path.absolute() if path.exists() else source)


def steps(folder: pathlib.Path) -> list[int]:
    """The steps of which a whole checkpoint was written."""
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
    """Says in a line why a checkpoint can't be restored: it doesn't fit, or it is damaged."""
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
    """A few words for the pages of what Orbax and TensorStore say."""
    known = (
        "No space left on device|Disk quota exceeded|File too large|Read-only file system|"
        "Permission denied|Input/output error"
    )
    if found := re.search(known, str(error)):
        return found[0]
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
