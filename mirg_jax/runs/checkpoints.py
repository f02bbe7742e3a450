"""Writing and restoring a run's checkpoints. `run_folder.py` describes their contents."""

import contextlib
import json
import logging
import pathlib
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx

from mirg_jax.errors import CheckpointError, SaveError
from mirg_jax.files import outputs, places
from mirg_jax.files.places import Place
from mirg_jax.models import lora
from mirg_jax.runs import metrics, run_folder
from mirg_jax.runs.loading import Model
from mirg_jax.runs.settings import CheckpointSettings
from mirg_jax.runs.train_state import TrainState
from mirg_jax.sharding import processes
from mirg_jax.weights import hf, orbax_files


def _quiet() -> None:
    """Suppresses what Orbax's and TensorStore's threads print to stderr after a failed save."""
    logging.getLogger("absl").addFilter(
        lambda record: not (record.exc_info and "orbax" in record.pathname)
    )
    before = sys.unraisablehook

    def hook(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


class _LatestAndBest:
    """Orbax preservation policy: keeps the last n checkpoints and the best on held-out rows.

    With n = 0 it keeps all.
    """

    def __init__(self, n: int, accuracies: dict[int, float]):
        self.n, self.accuracies = n, accuracies

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        latest = steps[-self.n :] if self.n else steps
        kept = {*latest, run_folder.best_of(self.accuracies, steps)}
        return [step in kept for step in steps]


class Checkpoints:
    """The checkpoints of one run, written in the background.

    A checkpoint is renamed to its final name once complete (in a store, it gets a file that says
    so); an incomplete one of a killed run is removed. After a save, older checkpoints are removed,
    except for the best of those evaluated.
    """

    def __init__(self, workdir: Place, settings: CheckpointSettings):
        self._every = settings.every
        self._accuracies = metrics.held_out(workdir)
        self._folder = places.absolute(workdir / "checkpoints")
        _quiet()
        with self._writing():
            self._manager = ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=_LatestAndBest(settings.keep, self._accuracies),
                    cleanup_tmp_directories=True,
                ),
                item_handlers={
                    "params": run_folder.pytree_handler(),
                    "train": run_folder.pytree_handler(),
                    "data": ocp.JsonCheckpointHandler(),
                },
            )

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except jax.errors.JaxRuntimeError:  # another process has ended
            raise
        except Exception as error:
            known = isinstance(error, (OSError, ValueError, RuntimeError))
            if not known and not places.is_url(self._folder):  # a store's client has its own
                raise
            last = None
            with contextlib.suppress(CheckpointError):  # a store that can't be reached
                last = max(run_folder.steps(self._folder), default=None)
            then = "" if last is None else f"; the run then goes on from step {last}"
            raise SaveError(
                f"{self._folder}: a checkpoint could not be written "
                f"({run_folder.reason(error)}); {places.remedy(self._folder)} and run again{then}"
            ) from None

    def latest(self) -> int | None:
        """Returns the latest step with a checkpoint, or None."""
        return self._manager.latest_step()

    def save(
        self,
        state: TrainState,
        frozen: nnx.State,
        data: dict,
        *,
        force: bool = False,
        accuracy: float | None = None,
    ) -> bool:
        """Saves a checkpoint if one is due at this step, the step was evaluated, or `force` is set.

        It contains all parameters, including frozen ones (for a LoRA run, only the adapters), the
        optimizer's state, the random key and the position in the data. The call returns when the
        arrays are copied; they are written in the background. A failure to write is raised by the
        next call, so call this after every step.

        Args:
          state: the training state.
          frozen: the parameters that are not trained.
          data: position in the data, as JSON values.
          force: whether to save even if no checkpoint is due.
          accuracy: accuracy on held-out rows, if this step was evaluated.

        Returns:
          Whether it is saved.

        Raises:
          SaveError: if this checkpoint or the previous one can't be written.
        """
        step = int(jax.device_get(state.step))
        if accuracy is not None:
            self._accuracies[step] = accuracy
            force = True
        with self._writing():
            # Raises what the previous save ended with, which `check_for_errors` doesn't see: the
            # manager's own thread has taken it by then.
            if not self._manager.is_saving_in_progress():
                self._manager.wait_until_finished()
            due = force or (self._every and step % self._every == 0)
            if self._manager.latest_step() == step or not due:
                return False
            params = _saved(state.params, frozen)
            train = state._replace(params=None)._asdict()
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.PyTreeSave(nnx.to_pure_dict(params)),
                    train=ocp.args.PyTreeSave(train),
                    data=ocp.args.JsonSave(data),
                ),
                force=True,  # whether a checkpoint is due is decided above
            )
            return True

    def check_room(self, state: TrainState, frozen: nnx.State) -> None:
        """Checks that a checkpoint finds room, before any step is taken.

        Raises:
          SaveError: in all processes, if a checkpoint takes more than is free on the first one's
            disk.
        """
        if not isinstance(self._folder, pathlib.Path):
            return  # a store has room
        needed = saved_bytes(state, frozen)
        total, _, free = shutil.disk_usage(self._folder)
        if processes.gather(total > 0 and free < needed)[0]:  # some file systems don't know
            raise SaveError(
                f"{self._folder}: a checkpoint takes {needed / 1e9:.3g} GB, and there are "
                f"{free / 1e9:.3g} GB free; make room, or give another --workdir"
            )

    def restore(self, state: TrainState, frozen: nnx.State) -> tuple[TrainState, nnx.State, dict]:
        """Restores the latest checkpoint.

        Args:
          state: a new training state, whose shapes, dtypes and shardings are used.
          frozen: the parameters that are not trained.

        Returns:
          The training state, the frozen parameters, and the position in the data.

        Raises:
          CheckpointError: if the checkpoint is damaged, or belongs to another model, optimizer or
            choice of trained parameters.
        """
        params = _saved(state.params, frozen)
        pure, train = nnx.to_pure_dict(params), state._replace(params=None)._asdict()

        def wanted(tree):
            shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
            restore_args = ocp.checkpoint_utils.construct_restore_args(shapes)
            return ocp.args.PyTreeRestore(shapes, restore_args=restore_args)

        step = self.latest()
        folder = self._folder / str(step)
        with run_folder.reading(
            folder, "config", "use the config it was made with, or another --workdir"
        ):
            run_folder.check_shapes(folder / "params", pure)
            run_folder.check_shapes(folder / "train", train)
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=wanted(pure),
                    train=wanted(train),
                    data=ocp.args.JsonRestore(),
                ),
            )
        loaded = run_folder.from_pure(params, restored["params"])
        trained = set(nnx.to_flat_state(state.params).paths)
        params, rest = nnx.split_state(loaded, lambda path, _: tuple(path) in trained, ...)
        return (
            TrainState(**(dict(restored["train"]) | {"params": params})),
            nnx.merge_state(frozen, rest),
            restored["data"],
        )

    def close(self) -> None:
        """Waits until pending checkpoints are on disk.

        Raises:
          SaveError: if one can't be written.
        """
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.close()


def saved_bytes(state: TrainState, frozen: nnx.State) -> int:
    """Returns the bytes of a checkpoint of arrays or their shapes: parameters and optimizer."""
    arrays = jax.tree.leaves((_saved(state.params, frozen), state.opt_state))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in arrays)


def _saved(params: nnx.State, frozen: nnx.State) -> nnx.State:
    return params if lora.is_adapters(params) else nnx.merge_state(params, frozen)


def save_params(
    workdir: pathlib.Path,
    state: nnx.State,
    read: hf.Read,
    progress: Callable[[int], object] = lambda nbytes: None,
) -> None:
    """Writes parameters as the checkpoint of step 0, so that the folder is a model to start from.

    Parameters are read and written in chunks. After an interruption, call this again to go on.

    Args:
      workdir: the run's folder.
      state: shapes and dtypes of the parameters.
      read: source of the parameters.
      progress: called with the number of bytes of each chunk after it is written.
    """
    unfinished, checkpoint = workdir / "unfinished", workdir / "checkpoints" / "0"
    if not checkpoint.exists():
        orbax_files.write(unfinished / "params", state, read, progress)
        checkpoint.parent.mkdir(exist_ok=True)
        unfinished.rename(checkpoint)


def write_model_folder(workdir: Place, model: Model, config: str) -> None:
    """Writes the model's config.json and tokenizer, and the run's settings, to the run's folder.

    Args:
      workdir: the run's folder.
      model: the model.
      config: the run's settings as JSON.
    """
    folder = workdir / "model"
    hf.copy_processor(model.folder, folder)
    outputs.replace_text(folder / "config.json", json.dumps(model.config.to_hf(), indent=2) + "\n")
    outputs.replace_text(workdir / "config.json", config + "\n")
