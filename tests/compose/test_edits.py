"""What is left where something was removed."""

import numpy as np
import pytest

from mirg_jax.compose import edits

BOX = (40, 30, 80, 70)


@pytest.mark.parametrize("where", [(39, 45, 40, 60), (20, 20, 60, 45), (0, 0, 120, 20)])
def test_a_wall_stays_plain_where_something_was_removed_beside_a_dark_thing(where):
    wall = np.full((100, 120, 3), 180, np.uint8)
    x1, y1, x2, y2 = where
    wall[y1:y2, x1:x2] = 10
    wall[BOX[1] : BOX[3], BOX[0] : BOX[2]] = (200, 30, 60)
    after = edits.remove(np.random.default_rng(0), wall, BOX)
    bends = np.diff(after[50:70, 66:80].astype(float), n=2, axis=1)
    assert np.abs(bends).max() <= 2  # a shade, rounded, and no grain
    assert edits.changed_box(wall, after) == BOX


@pytest.mark.parametrize("grain", [0.0, 1.5, 4.0])
def test_grain_is_that_of_what_is_around(grain):
    rng = np.random.default_rng(1)
    noisy = np.clip(np.rint(rng.normal(128, grain, (100, 120, 3))), 0, 255).astype(np.uint8)
    noisy[:, 55:58] = 255  # a post that stands behind
    noisy[BOX[1] : BOX[3], BOX[0] : BOX[2]] = (200, 30, 60)
    after = edits.remove(np.random.default_rng(0), noisy, BOX)
    right = np.diff(after[30:70, 62:79].astype(float), axis=1).std() / 2**0.5
    assert abs(right - grain) < 0.3 * grain + 0.8
