"""How many questions are answered at once: by the devices and the memory that they have left."""

import contextlib
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mirg_jax import sharding
from mirg_jax.data.batching import Shapes
from mirg_jax.runs import chips
from mirg_jax.sampling.pool import Feeding
from mirg_jax.sharding.memory import bytes_per_device
from mirg_jax.types import Images, Text

CPU_ROWS = 16  # on a CPU, however many devices it is divided into
# Of devices that share a copy of the weights. With more, keys and values of the rows take far
# longer to read than the weights, which is all that a step can share between rows.
MOST_ROWS = 64
_SHARE = 0.5  # of the memory left; activations, and what the allocator can't use, have the rest
_GIB = 2**30


def memory_of(device: jax.Device) -> float | None:
    """Returns the memory of a device in bytes; None for a CPU's, and where it isn't known."""
    if device.platform == "cpu":
        return None
    known = []
    if chip := chips.find(device.device_kind):
        known.append(chip.memory * _GIB)
    # A device that isn't here, which a plan is for, can't be asked.
    with contextlib.suppress(jax.errors.JaxRuntimeError, NotImplementedError):
        if limit := (device.memory_stats() or {}).get("bytes_limit"):
            known.append(limit)
    return min(known, default=None)


def largest_prompts(shapes: Shapes, rows: int, mesh: Mesh) -> tuple[Text, Images]:
    """Returns the shapes of prompts, a row each, that are as large as any may be."""
    T, S, P = shapes.lengths[-1], shapes.slots[-1], shapes.patches[-1]

    def make(*shape: int, dtype: Any = np.int32) -> Any:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding.by_rows(mesh))

    text = Text(make(T), make(T, 3), make(T), make(T))
    return text, Images(make(S, P, shapes.patch_bytes, dtype=np.uint8), make(S, P, 2))


def bytes_of_row(feeding: Feeding, weights: nnx.State, shapes: Shapes, mesh: Mesh) -> int:
    """Returns the memory that one question takes on each of the devices that answer it.

    Args:
      feeding: the sampler's functions.
      weights: weights for sampling, or their shapes.
      shapes: the allowed sizes of prompts.
      mesh: the mesh that samples.
    """
    prompts = largest_prompts(shapes, sharding.row_parts(mesh), mesh)
    return bytes_per_device((prompts, feeding.open.eval_shape(weights, *prompts)))


def that_fit(row: int, free: float) -> int:
    """Returns how many questions a group of devices that share a copy of the weights answers.

    That is a power of two from 1 to MOST_ROWS.

    Args:
      row: bytes that a question takes on a device.
      free: bytes that are left on a device.
    """
    room = min(max(int(_SHARE * free / row), 1), MOST_ROWS)
    return 1 << room.bit_length() - 1


def at_once(
    wanted: int,
    memory: float | None,
    feeding: Feeding,
    weights: nnx.State,
    resident: Any,
    shapes: Shapes,
    mesh: Mesh,
    sampling_mesh: Mesh,
) -> int:
    """Returns how many questions are answered at once, over all devices.

    Args:
      wanted: this many, or the next number that can be divided over the meshes; 0: what fits.
      memory: a device's memory in bytes; None, where it isn't known: CPU_ROWS are taken to fit.
      feeding: the sampler's functions.
      weights: weights for sampling, or their shapes.
      resident: other arrays on the devices, or their shapes.
      shapes: the allowed sizes of prompts.
      mesh: the mesh that prompts are placed on.
      sampling_mesh: the mesh that samples.
    """
    rows = wanted or CPU_ROWS
    if not wanted and memory is not None:
        free = memory - bytes_per_device((weights, resident))
        fit = that_fit(bytes_of_row(feeding, weights, shapes, sampling_mesh), free)
        rows = fit * sharding.row_parts(sampling_mesh)
    return sharding.whole_rows(rows, mesh, sampling_mesh)


def for_questions(count: int, most: int, *meshes: Mesh) -> int:
    """Returns how many rows a number of questions is answered in.

    That is `most`, or a quarter, a sixteenth, … of it, so that few programs are compiled, whatever
    numbers of questions there are.

    Args:
      count: the number of questions.
      most: rows for any number of questions.
      *meshes: the meshes that rows are divided over.
    """
    fewer = sharding.whole_rows(-(-most // 4), *meshes)
    return for_questions(count, fewer, *meshes) if count <= fewer < most else most
