"""Rotary positions against their definition, in float64 complex numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from mirg_jax.models import rope


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("section", [(16, 24, 24), (2, 3, 3), (4, 4, 4)])
@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_mrope_angles(rng, section, theta):
    """Frequency i is θ^(−i/half); the first section turns by time, then height, then width."""
    positions = rng.integers(0, 6000, (2, 50, 3))
    half = sum(section)
    axis = [0] * section[0] + [1] * section[1] + [2] * section[2]
    expected = np.stack(
        [positions[..., axis[i]] * theta ** (-i / half) for i in range(half)], axis=-1
    )
    angles = rope.mrope_angles(jnp.asarray(positions), section, theta)
    np.testing.assert_allclose(angles, expected, rtol=3e-7)


@pytest.mark.parametrize("section", [(24, 20, 20), (4, 2, 2), (4, 4, 4)])
def test_interleaved_mrope_angles(rng, section):
    """Time, height and width take turns, until height and width have had theirs."""
    positions = rng.integers(0, 6000, (2, 50, 3))
    half = sum(section)
    axis = [i % 3 if i < 3 * section[i % 3] else 0 for i in range(half)]
    assert [axis.count(which) for which in range(3)] == list(section)
    expected = np.stack([positions[..., axis[i]] * 5e6 ** (-i / half) for i in range(half)], -1)
    angles = rope.mrope_angles(jnp.asarray(positions), section, 5e6, interleaved=True)
    np.testing.assert_allclose(angles, expected, rtol=3e-7)


@pytest.mark.parametrize("head_dim", [80, 16, 12])
def test_patch_angles(rng, head_dim):
    """Of each half, one quarter of the head turns by row and one by column."""
    positions = rng.integers(0, 100, (3, 40, 2))
    quarter = head_dim // 4
    frequencies = [10000.0 ** (-i / quarter) for i in range(quarter)]
    rows, columns = positions[..., :1], positions[..., 1:]
    expected = np.concatenate([rows * frequencies, columns * frequencies], axis=-1)
    angles = rope.patch_angles(jnp.asarray(positions), head_dim)
    np.testing.assert_allclose(angles, expected, rtol=3e-7)


def test_rotate_is_complex_multiplication(rng):
    x = rng.standard_normal((3, 5, 2, 8)).astype(np.float32)
    angles = rng.uniform(-10, 10, (3, 5, 4))
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angles)[..., None, :]
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    turned = rope.rotate(jnp.asarray(x), jnp.asarray(angles))
    np.testing.assert_allclose(turned, expected, atol=1e-5)


def test_scores_depend_on_distance_alone(rng):
    q, k = jnp.asarray(rng.standard_normal((2, 1, 1, 16)), jnp.float32)

    def score(q_at, k_at):
        turned = [
            np.asarray(rope.rotate(x, rope.mrope_angles(jnp.array([at]), (2, 3, 3), 1e4)))
            for x, at in ((q, q_at), (k, k_at))
        ]
        return float((turned[0] * turned[1]).sum())

    here = score((5, 9, 2), (1, 4, 7))
    assert score((105, 59, 22), (101, 54, 27)) == pytest.approx(here, abs=1e-4)
    for axis in range(3):  # and on all three axes
        moved = np.array((5, 9, 2))
        moved[axis] += 3
        assert abs(score(tuple(moved), (1, 4, 7)) - here) > 1e-3
