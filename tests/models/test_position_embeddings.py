"""Interpolated position embeddings beside torch's interpolation, and transformers' on photos."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import torch
from PIL import Image
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from mirg_jax.data.batching import patch_positions
from mirg_jax.data.images import load_image, patchify
from mirg_jax.models.position_embeddings import interpolate

MOST = 4096  # patches of a padded slot


def table(side):
    return np.random.default_rng(side).standard_normal((side**2, 8)).astype(np.float32)


@jax.jit(static_argnums=2)
def ours_of(values, where, side):
    return interpolate(values, where, side)


def ours(values, grids, side):
    """Of several images, each in a padded slot."""
    where = np.full((1, len(grids), MOST, 2), -1, np.int32)
    for slot, (rows, columns) in enumerate(grids):
        where[0, slot, : rows * columns] = patch_positions((rows, columns))
    found = np.asarray(ours_of(jnp.asarray(values), where, side))[0]
    return [found[slot, : rows * columns] for slot, (rows, columns) in enumerate(grids)]


@pytest.mark.parametrize("side", [48, 5])
def test_any_grid_equals_torch(side):
    """Corners on corners, bilinear between; in the order of merged blocks."""
    values, rng = table(side), np.random.default_rng(0)
    grids = [(2, 2), (2, 64), (48, 48), (64, 64), *(2 * rng.integers(1, 30, (12, 2))).tolist()]
    square = torch.from_numpy(values.T.reshape(1, 8, side, side))
    for grid, found in zip(grids, ours(values, grids, side), strict=True):
        whole = torch.nn.functional.interpolate(
            square, size=tuple(grid), mode="bilinear", align_corners=True
        )
        row, column = patch_positions(tuple(grid)).T
        np.testing.assert_allclose(found, whole[0][:, row, column].T, atol=1e-4)


def test_photos_equal_transformers(shared):
    """From the image processor's grids, by the rule that its vision tower takes them."""
    root = shared("real_photos", "images")
    files = sorted(path.relative_to(root) for path in root.rglob("*.jpg"))[::20]
    vision, limits = reference.DEEP["deep wide"].vision, (65536, 524288)
    processor = reference.torch_processor(vision, *limits)
    images: list[Image.Image] = [load_image(root, str(file)) for file in files]
    grids = [patchify(image, *limits, vision.patch_size).grid for image in images]
    theirs = processor(images=images, return_tensors="pt")["image_grid_thw"]
    assert theirs.tolist() == [[1, *grid] for grid in grids] and len({*grids}) > 3
    values = table(48)
    index, weights = get_vision_interpolation_indices_and_weights(
        theirs, 48, mode="bilinear", align_corners=True, spatial_merge_size=2
    )
    expected = (torch.from_numpy(values)[index] * weights[..., None]).sum(1).numpy()
    # A place along a side, up to 47, is rounded by 4e-6; neighbouring values differ by up to 8.
    np.testing.assert_allclose(np.concatenate(ours(values, grids, 48)), expected, atol=1e-4)
