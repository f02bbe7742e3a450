"""Checks that a checkpoint has the tensors of a model, by the headers of its files."""

import pathlib
import re
from collections.abc import Callable, Mapping

from mirg_jax.errors import CheckpointError
from mirg_jax.weights.safetensors_files import FLOATS, Tensors, some

# What quantisation adds to a weight: AWQ and GPTQ, FP8 and compressed-tensors, bitsandbytes.
_OF_QUANTISATION = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|weight_scale(_inv)?|input_scale|weight_packed|SCB"
    r"|absmax|quant_map|quant_state)\b"
)


def check(
    folder: pathlib.Path,
    tensors: Tensors,
    wanted: Mapping[str, tuple[int, ...]],
    written: Callable[[str], str],
) -> None:
    """Checks a checkpoint's tensors before any is read.

    A head that isn't wanted may be there: `hf.read_config` has compared it with the embedding.

    Args:
      folder: the checkpoint, for the message.
      tensors: its tensors.
      wanted: shapes of the model's tensors by the names in `published.table`.
      written: converts such a name to the family's own, for tensors that are missing.

    Raises:
      CheckpointError: if a tensor is missing, unknown, quantised or of another shape; the message
        names the first of them, as the files do.
    """
    shapes, dtypes = tensors.shapes, tensors.dtypes
    missing = [written(name) for name in wanted if name not in shapes]
    extra = [name for name in shapes if name not in wanted and name != "lm_head.weight"]
    extra = [tensors.stored_name(name) for name in extra]
    held = {name: tensors.stored_name(name) for name in wanted if name in shapes}
    wrong = [
        f"{stored} is {shapes[name]}, not {wanted[name]}"
        for name, stored in held.items()
        if shapes[name] != wanted[name]
    ]
    types = (*FLOATS.values(), "F64")
    typed = [
        f"{stored} in {dtypes[name]}" for name, stored in held.items() if dtypes[name] not in types
    ]
    typed += [name for name in extra if _OF_QUANTISATION.search(name)]
    same = "check that its weights and config.json belong to the same model"
    plain = "give the checkpoint in bfloat16 or float32 that they were made from"
    for problem, names, remedy in (
        ("holds quantised weights, which can't be read:", typed, plain),
        ("lacks", missing, same),
        ("has unknown", extra, same),
        ("has tensors that are misshapen:", wrong, same),
    ):
        if names:
            raise CheckpointError(f"{folder}: the checkpoint {problem} {some(names)}; {remedy}")
