"""Checks that a checkpoint's images are to be prepared as this package prepares them."""

import json
import pathlib
from typing import Any

import numpy as np

from mirg_jax.errors import CheckpointError
from mirg_jax.models.config import VisionConfig
from mirg_jax.models.vision import pixel_statistics

# What is done to every image: bicubic resizing, 0..255 → 0..1.
_ALWAYS = {
    "do_resize": True,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "merge_size": 2,
}


def check(folder: pathlib.Path, vision: VisionConfig) -> None:
    """Checks a checkpoint's preprocessor_config.json or processor_config.json, if it has one.

    The limits on an image's pixels there are not used; they are settings of each run.

    Args:
      folder: the checkpoint.
      vision: its tower, which decides about patches and normalisation.

    Raises:
      CheckpointError: if a file is damaged, or asks for images in another form; the message names
        the field.
    """
    mean, std = (values.tolist() for values in pixel_statistics(vision))
    always = _ALWAYS | {"image_mean": mean, "image_std": std, "patch_size": vision.patch_size}
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        if not path.exists():
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            found = found.get("image_processor", found)
            wrong = next((key for key in always if not _is_same(found.get(key), always[key])), "")
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); get it again") from None
        if wrong:
            raise CheckpointError(
                f"{path}: {wrong}={found[wrong]!r} is not supported, only {always[wrong]!r}; give "
                "a checkpoint whose images are prepared so"
            )


def _is_same(value: Any, always: Any) -> bool:
    return value is None or bool(
        np.shape(value) == np.shape(always) and np.allclose(value, always, atol=1e-6)
    )
