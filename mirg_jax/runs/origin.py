"""The weights that a run started from, recorded in WORKDIR/origin.json.

A resumed run needs them again: they are GRPO's reference, and the base of a LoRA run's adapters. So
the record identifies them by content. A path alone may hold other weights later: a run's folder
when the run goes on, a Hugging Face folder when it is replaced, a setting when it is left out.
"""

import dataclasses
import functools
import json
import math
import pathlib
import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, UInt32

from mirg_jax import sharding
from mirg_jax.errors import CheckpointError
from mirg_jax.files import outputs, places
from mirg_jax.files.places import Place
from mirg_jax.runs import run_folder
from mirg_jax.weights import hf

_WORDS = 2  # 32-bit words of a fingerprint
_PART = 2**24  # numbers that are read from files at a time


@dataclasses.dataclass(frozen=True)
class Origin:
    """The weights that a run started from.

    Attributes:
      source: where they were: a checkpoint, a Hugging Face folder or a hub name.
      weights: their `fingerprint`, in `param_dtype`.
      param_dtype: dtype of the parameters in training.
    """

    source: str
    weights: str
    param_dtype: str


def fingerprint(params: nnx.State, mesh: Mesh) -> str:
    """Computes a checksum of parameters that doesn't depend on how they are stored or sharded.

    `facts.hash_model`, of the bytes of files, would differ for the same weights as a checkpoint, as
    a Hugging Face folder, or in parts of another size.

    Args:
      params: the parameters, on the devices.
      mesh: the mesh that they lie on.
    """
    sums = jax.jit(_sums, out_shardings=sharding.replicated(mesh))
    return _as_text(jax.device_get(sums(nnx.to_pure_dict(params))))


def fingerprint_of_files(shapes: nnx.State, read: hf.Read, dtype: str) -> str:
    """Computes the same checksum from files, in parts, so that memory use stays small.

    Args:
      shapes: shapes of the parameters.
      read: reads slices of them.
      dtype: dtype that the parameters had when their checksum was recorded.
    """
    total = np.zeros(_WORDS, np.uint32)
    for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(shapes)):
        name, width = jax.tree_util.keystr(path, simple=True, separator="."), leaf.shape[1:]
        row = math.prod(width)
        rows = max(1, _PART // row)
        for first in range(0, leaf.shape[0], rows):
            last = min(first + rows, leaf.shape[0])
            part = np.empty((last - first, *width), dtype)
            read(name, (slice(first, last), *(slice(None) for _ in width)), part)
            start = np.uint32(first * row % 2**32)
            total += jax.device_get(_sums_of_part(part, _name_of(path), start))
    return _as_text(total)


def _as_text(words: UInt32[np.ndarray, " words"]) -> str:
    return "".join(f"{int(word):08x}" for word in words)


def _sums(params: Mapping) -> UInt32[Array, " words"]:
    """Sums a hash of every number with its place and its parameter's name, in any order."""
    total = jnp.zeros(_WORDS, jnp.uint32)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        total = total + _sums_of_leaf(leaf, _name_of(path), np.uint32(0))
    return total


def _sums_of_leaf(leaf: Array, name: np.uint32, start: np.uint32) -> UInt32[Array, " words"]:
    """Sums the hashes of a parameter, or of the part of it that begins with number `start`."""
    bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
    place, stride = jnp.uint32(start), 1
    for axis in reversed(range(leaf.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        place = place + along * jnp.uint32(stride % 2**32)
        stride *= leaf.shape[axis]
    words = [
        _mix(bits ^ _mix(place + jnp.uint32(name) + jnp.uint32(word))).sum(dtype=jnp.uint32)
        for word in range(_WORDS)
    ]
    return jnp.stack(words)


_sums_of_part = jax.jit(_sums_of_leaf)


def _name_of(path: tuple) -> np.uint32:
    return np.uint32(zlib.crc32(jax.tree_util.keystr(path).encode()))


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Scatters the bits of each word (the last steps of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def path_in(run: Place) -> Place:
    """Returns the path of the record in a run's folder."""
    return run / "origin.json"


def read(run: Place) -> Origin | None:
    """Reads the record in a run's folder.

    Returns:
      The record; None if there is none, as in runs of earlier versions.

    Raises:
      CheckpointError: if the file is not a valid record.
    """
    parse = functools.partial(run_folder.as_record, Origin)
    return run_folder.read_record(path_in(run), parse, "a run's start")


def write(run: Place, origin: Origin) -> None:
    """Writes a record to a run's folder."""
    text = json.dumps(dataclasses.asdict(origin), indent=1) + "\n"
    outputs.replace_text(path_in(run), text)


def source_of(wanted: str, recorded: Origin | None) -> str:
    """Returns the model to load as the start of a run that is resumed.

    A run's folder, or its best checkpoint, names other weights as that run goes on. It then means
    the checkpoint that was recorded.

    Args:
      wanted: what the config names.
      recorded: the record of the run to resume; None without one.
    """
    exact = run_folder.exactly(wanted)
    if recorded is None or exact == str(places.absolute(places.of(wanted))):
        return exact
    named, before = run_folder.find_run(wanted), run_folder.find_run(recorded.source)
    return recorded.source if named and before and named.run == before.run else exact


def check(run: Place, recorded: Origin, found: Origin) -> None:
    """Checks that a run to resume starts from the weights that it started from before.

    Args:
      run: the run's folder.
      recorded: its record.
      found: what it would start from now.

    Raises:
      CheckpointError: if the weights are others.
    """
    if recorded.weights == found.weights:
        return
    if recorded.source == found.source:
        what, remedy = f"the weights of {found.source} are no longer the same", "restore them"
        if recorded.param_dtype != found.param_dtype:
            what = f"its weights were {recorded.param_dtype}, the config asks for "
            what += found.param_dtype
            remedy = f"set model.param_dtype={recorded.param_dtype}"
    else:
        what = f"it started from {recorded.source}, the config names {found.source}, other weights"
        remedy = f"set init_from={recorded.source}"
        if recorded.source.startswith("/") and not pathlib.Path(recorded.source).exists():
            remedy = f"restore {recorded.source}, which is gone, and set init_from to it"
    raise CheckpointError(
        f"{run}: can't go on, since {what} ({path_in(run).name} has the record); {remedy}, or give "
        "another --workdir"
    )
