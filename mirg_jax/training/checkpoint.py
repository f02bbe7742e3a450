"""Checkpoints: everything a run needs to go on, and everything a model needs to be used.

A run's folder holds `model/` (config.json, tokenizer), `checkpoints/STEP/` (Orbax: `params`,
`train`, `data`) and its logs. Where a model is asked for, any of these will do: such a folder, one
of its checkpoints, `best` in it for the one that did best on held-out rows, a Hugging Face folder,
or a hub name. A LoRA run's `params` are its adapters alone; where its model is asked for, they are
merged into the base that its lora.json names.
"""

import contextlib
import functools
import json
import logging
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from mirg_jax import sharding
from mirg_jax.errors import CheckpointError, SaveError
from mirg_jax.models import lora
from mirg_jax.models.config import ModelConfig
from mirg_jax.models.layers import FLOAT32, Precision
from mirg_jax.models.qwen2_vl import abstract
from mirg_jax.training import adapters, metrics
from mirg_jax.training.state import TrainState
from mirg_jax.weights import hf, orbax_files


class Model(NamedTuple):
    """A model ready to run."""

    config: ModelConfig
    graph: nnx.GraphDef
    params: nnx.State
    folder: pathlib.Path  # its config.json and tokenizer


def with_shardings(state: nnx.State, mesh: jax.sharding.Mesh) -> nnx.State:
    shardings = sharding.parameter_shardings(state, mesh)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        state,
        shardings,
    )


def find_run(source: str | pathlib.Path) -> tuple[pathlib.Path, int] | None:
    """The run folder and step that `source` means, if it is a run or one of its checkpoints."""
    path = pathlib.Path(source).absolute()
    if path.name == "best" and (path.parent / "checkpoints").is_dir():
        step = best_of(metrics.held_out(path.parent), _steps(path.parent / "checkpoints"))
        if step is None:
            raise CheckpointError(
                f"{path.parent}: no checkpoint was evaluated in training, so none is the best; "
                "name a step, or train with config.evaluation.every"
            )
        return path.parent, step
    if path.parent.name == "checkpoints" and path.name.isdigit() and path.is_dir():
        return path.parent.parent, int(path.name)
    if (path / "checkpoints").is_dir():
        steps = ocp.utils.checkpoint_steps(path / "checkpoints")
        if steps:
            return path, max(steps)
    return None


def best_of(accuracies: Mapping[int, float], steps: Iterable[int]) -> int | None:
    """Of these steps, the one with the highest accuracy, the latest of equals."""
    return max(
        (s for s in steps if s in accuracies), key=lambda s: (accuracies[s], s), default=None
    )


def exactly(source: str | pathlib.Path) -> str:
    """What `source` means now, wherever and whenever it is read: a run's checkpoint, a folder."""
    if run := find_run(source):
        return str(run[0] / "checkpoints" / str(run[1]))
    path = pathlib.Path(source)
    return str(path.absolute() if path.exists() else source)


def model_folder(source: str | pathlib.Path) -> pathlib.Path:
    """The folder with config.json and tokenizer of anything that names a model.

    Raises:
      CheckpointError: if it is neither a folder with a model nor a hub name that can be had.
    """
    if run := find_run(source):
        return run[0] / "model"
    path = pathlib.Path(source)
    if (path / "config.json").is_file():
        return path
    if path.exists():
        raise CheckpointError(f"{path}: no config.json and no checkpoints in this folder")
    try:
        return pathlib.Path(snapshot_download(str(source)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError):
        raise CheckpointError(
            f"{source}: not a folder here, and not to be had from the Hugging Face hub"
        ) from None


def load_model(
    source: str | pathlib.Path,
    mesh: jax.sharding.Mesh,
    **how,
) -> Model:
    """Loads a model from a run, a checkpoint, a Hugging Face folder or a hub name.

    Args:
      how: `precision`, `remat` and `attention` of `Qwen2VL`.

    Raises:
      CheckpointError: if there is none, or its tensors don't fit its config.json.
    """
    folder = model_folder(source)
    config = ModelConfig.from_folder(folder)
    graph, state = abstract(config, **how)
    state = with_shardings(state, mesh)
    run = find_run(source)
    if run is None:
        state = hf.load(folder, state, config)
    elif adapters.read(run[0]):
        state = _load_merged(run, mesh, how.get("precision", FLOAT32))
    else:
        state = _restore_params(run[0] / "checkpoints" / str(run[1]), state)
    return Model(config, graph, state, folder)


def open_model(
    source: str | pathlib.Path, *, precision: Precision = FLOAT32
) -> tuple[Model, hf.Read]:
    """Any model that `load_model` takes with its parameters left on disk, and how to read them.

    The returned model's `params` are shapes.

    Raises:
      CheckpointError: as `load_model`.
    """
    folder = model_folder(source)
    config = ModelConfig.from_folder(folder)
    graph, state = abstract(config, precision=precision)
    run = find_run(source)
    if run and adapters.read(run[0]):
        read = _merging_reader(run)
    elif run:
        checkpoint = run[0] / "checkpoints" / str(run[1])
        with _reading(checkpoint, "model", "give the run's own model folder or another checkpoint"):
            _check_shapes(checkpoint / "params", nnx.to_pure_dict(state))
        read = orbax_files.reader(checkpoint / "params")
    else:
        read = hf.reader(folder, state, config)
    return Model(config, graph, state, folder), read


def load_adapters(
    source: str | pathlib.Path, mesh: jax.sharding.Mesh
) -> tuple[adapters.Record, ModelConfig, nnx.State]:
    """The adapters of a LoRA run or one of its checkpoints, and what they belong to.

    Raises:
      CheckpointError: if `source` is something else, or broken.
    """
    run = find_run(source)
    record = run and adapters.read(run[0])
    if not record:
        raise CheckpointError(f"{source}: not a LoRA run with a checkpoint, so it has no adapters")
    config = ModelConfig.from_folder(run[0] / "model")
    _, shapes = lora.attach(*abstract(config), record.lora)
    values = _restore_params(run[0] / "checkpoints" / str(run[1]), with_shardings(shapes, mesh))
    return record, config, values


def _merging_reader(run: tuple[pathlib.Path, int]) -> hf.Read:
    """Reads a LoRA run's parameters as `_load_merged` makes them, part by part."""
    mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
    record, config, values = load_adapters(run[0] / "checkpoints" / str(run[1]), mesh)
    with _base_of(run, record):
        base, read_base = open_model(record.base)
        if base.config != config:
            raise CheckpointError(f"{record.base} is another model")
    held = {path: np.asarray(leaf.get_value()) for path, leaf in hf.by_path(values).items()}

    def read(path: str, index: hf.Index, out: np.ndarray) -> None:
        layer = path.removesuffix(".kernel")
        if f"{layer}.lora_a" not in held:
            return read_base(path, index, out)
        kernel = np.empty(out.shape, record.param_dtype)
        read_base(path, index, kernel)
        layers, rows, columns = index
        a, b = held[f"{layer}.lora_a"][layers, rows], held[f"{layer}.lora_b"][layers, :, columns]
        out[...] = kernel.astype(np.float32) + record.lora.scale * (a @ b)

    return read


@contextlib.contextmanager
def _base_of(run: tuple[pathlib.Path, int], record: adapters.Record) -> Iterator[None]:
    """Says, of a base that can't be loaded, whose it is."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(
            f"{run[0]}: the base of its adapters can't be loaded ({error}); put it back there, or "
            f"name another place in {adapters.path_in(run[0])}"
        ) from None


def _load_merged(run: tuple[pathlib.Path, int], mesh: jax.sharding.Mesh, precision: Precision):
    """Base and adapters as one: the base in the dtype it was trained on, the sum in ours."""
    record, config, values = load_adapters(run[0] / "checkpoints" / str(run[1]), mesh)
    kept = precision._replace(params=jnp.dtype(record.param_dtype))
    with _base_of(run, record):
        base = load_model(record.base, mesh, precision=kept)
        if base.config != config:
            raise CheckpointError(f"{record.base} is another model")
    merge = functools.partial(lora.merge, lora=record.lora, dtype=precision.params)
    where = sharding.parameter_shardings(base.params, mesh)
    return jax.jit(merge, out_shardings=where)(base.params, values)


def _restore_params(checkpoint: pathlib.Path, state: nnx.State) -> nnx.State:
    wanted = nnx.to_pure_dict(state)
    with _reading(checkpoint, "model", "give the run's own model folder or another checkpoint"):
        _check_shapes(checkpoint / "params", wanted)
        with ocp.StandardCheckpointer() as checkpointer:
            pure = checkpointer.restore(checkpoint / "params", wanted)
    return _from_pure(state, pure)


class _Misfit(Exception):
    """A checkpoint holds other arrays than are wanted."""


def _check_shapes(folder: pathlib.Path, wanted: Any) -> None:
    """Raises _Misfit if an array is saved in another shape; nothing is read for it."""
    saved = _pytree_handler().metadata(folder).tree
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(saved)
    }
    for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if (found := shapes.get(name)) != tuple(leaf.shape):
            what = "missing" if found is None else f"{found}"
            raise _Misfit(f"{name} is {what} there, not {tuple(leaf.shape)}")


@contextlib.contextmanager
def _reading(checkpoint: pathlib.Path, what: str, remedy: str):
    """Says in a line why a checkpoint can't be restored: it doesn't fit, or it is damaged."""
    try:
        yield
    except _Misfit as error:
        raise CheckpointError(
            f"{checkpoint}: the checkpoint doesn't fit this {what} ({error}); {remedy}"
        ) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        others = [s for s in _steps(checkpoint.parent) if s != int(checkpoint.name)]
        before = max((s for s in others if s < int(checkpoint.name)), default=None)
        use = "there is no older one" if before is None else f"delete it to use step {before}"
        raise CheckpointError(
            f"{checkpoint}: the checkpoint is damaged ({_reason(error)}); {use}"
        ) from None


def _steps(folder: pathlib.Path) -> list[int]:
    """The steps of which a whole checkpoint was written."""
    return ocp.utils.checkpoint_steps(folder) if folder.is_dir() else []


def _reason(error: Exception) -> str:
    """A few words for the pages of what Orbax and TensorStore say."""
    known = (
        "No space left on device|Disk quota exceeded|File too large|Read-only file system|"
        "Permission denied|Input/output error"
    )
    if found := re.search(known, str(error)):
        return found[0]
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _from_pure(state: nnx.State, pure: Any) -> nnx.State:
    leaves, structure = jax.tree.flatten(state)
    restored = jax.tree.leaves(pure)
    if len(leaves) != len(restored):
        raise CheckpointError("the checkpoint holds another set of parameters")
    return jax.tree.unflatten(structure, restored)


def _pytree_handler() -> ocp.PyTreeCheckpointHandler:
    """Writes each array from one device that holds it.

    By default Orbax divides it among all that do, for which every shape is compiled a program of
    its own; with small arrays that takes longer than all the writing.
    """
    arrays = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    registry = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, arrays), (np.ndarray, ocp.type_handlers.NumpyHandler())
    )
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def _quiet() -> None:
    """Keeps off stderr what a failed save makes Orbax and TensorStore say from their threads."""
    logging.getLogger("absl").addFilter(
        lambda record: not (record.exc_info and "orbax" in record.pathname)
    )
    before = sys.unraisablehook

    def hook(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


class _LatestAndBest:
    """Which checkpoints are kept, as Orbax asks it: the last n, and the best on held-out rows."""

    def __init__(self, n: int, accuracies: dict[int, float]):
        self.n, self.accuracies = n, accuracies

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self.n :], best_of(self.accuracies, steps)}
        return [step in kept for step in steps]


class Checkpoints:
    """The checkpoints of one run. They are written in the background.

    A checkpoint gets its name when it is whole; one that a killed run has begun is removed. Older
    ones are removed after that, but the best of those evaluated.
    """

    def __init__(self, workdir: pathlib.Path, *, every: int, keep: int):
        self._every = every
        self._accuracies = metrics.held_out(workdir)
        self._folder = (workdir / "checkpoints").absolute()
        _quiet()
        with self._writing():
            self._manager = ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=_LatestAndBest(keep, self._accuracies),
                    cleanup_tmp_directories=True,
                ),
                item_handlers={
                    "params": _pytree_handler(),
                    "train": _pytree_handler(),
                    "data": ocp.JsonCheckpointHandler(),
                },
            )

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except jax.errors.JaxRuntimeError:  # another process is gone
            raise
        except (OSError, ValueError, RuntimeError) as error:
            whole = max(_steps(self._folder), default=None)
            then = "" if whole is None else f"; it goes on from step {whole}, which is whole"
            raise SaveError(
                f"{self._folder}: a checkpoint could not be written ({_reason(error)}); make room "
                f"there and run again{then}"
            ) from None

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def save(
        self,
        state: TrainState,
        frozen: nnx.State,
        data: dict,
        *,
        force: bool = False,
        accuracy: float | None = None,
    ) -> None:
        """Saves if this step is due, evaluated or `force`d: parameters, optimizer, key, data order.

        Parameters are whole, frozen ones too; only adapters go without their base. Returns when
        the arrays are copied; they are written in the background.

        Args:
          accuracy: on held-out rows, where they were asked after this step.

        Raises:
          SaveError: if this checkpoint or the one before can't be written.
        """
        step = int(jax.device_get(state.step))
        if accuracy is not None:
            self._accuracies[step] = accuracy
            force = True
        with self._writing():
            self._manager.check_for_errors()
            if self._manager.latest_step() == step or not (force or step % self._every == 0):
                return
            params = _saved(state.params, frozen)
            train = state._replace(params=None)._asdict()
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.PyTreeSave(nnx.to_pure_dict(params)),
                    train=ocp.args.PyTreeSave(train),
                    data=ocp.args.JsonSave(data),
                ),
                force=True,  # whether it is due was decided here
            )

    def restore(self, state: TrainState, frozen: nnx.State) -> tuple[TrainState, nnx.State, dict]:
        """The latest checkpoint, in the shapes and shardings of a fresh `state`.

        Raises:
          CheckpointError: when it is of another model or optimizer, or damaged.
        """
        params = _saved(state.params, frozen)
        pure, train = nnx.to_pure_dict(params), state._replace(params=None)._asdict()

        def wanted(tree):
            shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
            restore_args = ocp.checkpoint_utils.construct_restore_args(shapes)
            return ocp.args.PyTreeRestore(shapes, restore_args=restore_args)

        step = self.latest()
        folder = self._folder / str(step)
        with _reading(folder, "config", "use the config it was made with, or another --workdir"):
            _check_shapes(folder / "params", pure)
            _check_shapes(folder / "train", train)
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=wanted(pure),
                    train=wanted(train),
                    data=ocp.args.JsonRestore(),
                ),
            )
        loaded = _from_pure(params, restored["params"])
        trained = set(nnx.to_flat_state(state.params).paths)
        params, rest = nnx.split_state(loaded, lambda path, _: tuple(path) in trained, ...)
        return (
            TrainState(**(dict(restored["train"]) | {"params": params})),
            nnx.merge_state(frozen, rest),
            restored["data"],
        )

    def close(self) -> None:
        """Waits until what is being written is on disk.

        Raises:
          SaveError: if it can't be.
        """
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.close()


def _saved(params: nnx.State, frozen: nnx.State) -> nnx.State:
    return params if lora.is_adapters(params) else nnx.merge_state(params, frozen)


def save_params(
    workdir: pathlib.Path,
    state: nnx.State,
    read: hf.Read,
    progress: Callable[[int], object] = lambda nbytes: None,
) -> None:
    """Writes parameters alone as step 0 of a run's folder: a model to start from.

    They are read and written by parts, `state` giving their shapes and dtypes. Call it again after
    an interruption to go on.
    """
    unfinished, whole = workdir / "unfinished", workdir / "checkpoints" / "0"
    if not whole.exists():
        orbax_files.write(unfinished / "params", state, read, progress)
        whole.parent.mkdir(exist_ok=True)
        unfinished.rename(whole)


def write_model_folder(workdir: pathlib.Path, model: Model, config: Any) -> None:
    """Puts config.json, the tokenizer's files and the run's own config into the run's folder."""
    folder = workdir / "model"
    hf.copy_processor(model.folder, folder)
    (folder / "config.json").write_text(json.dumps(model.config.to_hf(), indent=2) + "\n")
    (workdir / "config.json").write_text(config.to_json_best_effort(indent=1) + "\n")
