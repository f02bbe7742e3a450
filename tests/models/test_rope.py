"""Rotary positions against complex multiplication, and against transformers."""

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.configuration_qwen2_vl import (
    Qwen2VLTextConfig,
    Qwen2VLVisionConfig,
)
from transformers.models.qwen2_vl.modeling_qwen2_vl import (
    Qwen2VLRotaryEmbedding,
    Qwen2VLVisionRotaryEmbedding,
)

from mirg_jax.models import rope


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("section", [(16, 24, 24), (2, 3, 3), (4, 4, 4)])
@pytest.mark.parametrize("theta", [1e4, 1e6])
# A last digit of the float32 frequency counts as often as the position is large.
@pytest.mark.parametrize("reach, tolerance", [(300, 1e-4), (6000, 2e-3)])
def test_mrope_angles_equal_transformers(rng, section, theta, reach, tolerance):
    positions = rng.integers(0, reach, (2, 50, 3))
    head_dim = 2 * sum(section)
    config = Qwen2VLTextConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        num_key_value_heads=2,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": theta,
            "mrope_section": list(section),
        },
    )
    cos, sin = Qwen2VLRotaryEmbedding(config)(
        torch.zeros(1), torch.from_numpy(positions).permute(2, 0, 1)
    )
    angles = np.asarray(rope.mrope_angles(positions, section, theta))
    np.testing.assert_allclose(np.cos(angles), cos[..., : sum(section)], atol=tolerance)
    np.testing.assert_allclose(np.sin(angles), sin[..., : sum(section)], atol=tolerance)


@pytest.mark.parametrize("head_dim", [80, 16, 12])
def test_patch_angles_equal_transformers(rng, head_dim):
    positions = rng.integers(0, 100, (40, 2))
    config = Qwen2VLVisionConfig(embed_dim=2 * head_dim, num_heads=2)
    cos, sin = Qwen2VLVisionRotaryEmbedding(config)(torch.zeros(1), torch.from_numpy(positions))
    angles = np.asarray(rope.patch_angles(positions, head_dim))
    np.testing.assert_allclose(np.cos(angles), cos[..., : head_dim // 2], atol=5e-5)
    np.testing.assert_allclose(np.sin(angles), sin[..., : head_dim // 2], atol=5e-5)


def test_rotate_is_complex_multiplication(rng):
    x = rng.standard_normal((3, 5, 2, 8)).astype(np.float32)
    angles = rng.uniform(-10, 10, (3, 5, 4))
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angles)[..., None, :]
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(rope.rotate(x, angles), expected, atol=1e-5)


def test_scores_depend_on_distance_alone(rng):
    q, k = rng.standard_normal((2, 1, 1, 16)).astype(np.float32)

    def score(q_at, k_at):
        turned = [
            np.asarray(rope.rotate(x, rope.mrope_angles(np.array([at]), (2, 3, 3), 1e4)))
            for x, at in ((q, q_at), (k, k_at))
        ]
        return float((turned[0] * turned[1]).sum())

    here = score((5, 9, 2), (1, 4, 7))
    assert score((105, 59, 22), (101, 54, 27)) == pytest.approx(here, abs=1e-4)
    for axis in range(3):  # and on all three axes
        moved = np.array((5, 9, 2))
        moved[axis] += 3
        assert abs(score(tuple(moved), (1, 4, 7)) - here) > 1e-3
