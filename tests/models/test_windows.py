"""Windows against transformers' index and against attention under a mask, and what they cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.vision_utils import get_vision_window_index

from mirg_jax.data.batching import patch_positions
from mirg_jax.models import flops, windows
from mirg_jax.models.attention import attend
from mirg_jax.models.sizes import QWEN2_5_VL_7B


def slots(rng, count: int, most: int, room: int) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Random even grids, and the positions of their patches, [count, room, 2]."""
    grids = [tuple(map(int, 2 * rng.integers(1, most + 1, 2))) for _ in range(count)]
    places = np.full((count, room, 2), -1, np.int32)
    for slot, grid in zip(places, grids, strict=True):
        slot[: grid[0] * grid[1]] = patch_positions(grid)
    return grids, places


@pytest.mark.parametrize("size", [28, 56, 100, 112])
def test_the_order_is_transformers(size):
    """500 random layouts, most of which fill no whole number of windows."""
    rng = np.random.default_rng(size)
    for _ in range(125):
        grids, places = slots(rng, rng.integers(1, 5), most=13, room=26 * 26)
        found = windows.numbers(jnp.asarray(places), size // 28 * 2)
        there, back = map(np.asarray, windows.order(found))
        index, ends = get_vision_window_index(
            torch.tensor([[1, *grid] for grid in grids]), 2, size, 14
        )
        ours, lengths, before = [], [], 0
        for slot, (rows, columns) in enumerate(grids):
            count = rows * columns
            order = there[slot, :count].reshape(-1, 4)
            assert (order[:, :1] + np.arange(4) == order).all()  # visual tokens stay whole
            ours += list(order[:, 0] // 4 + before)
            before += count // 4
            run = np.asarray(found)[slot, there[slot, :count]]
            assert (np.diff(run) >= 0).all()
            lengths += list(np.unique(run, return_counts=True)[1])
            np.testing.assert_array_equal(places[slot][there[slot]][back[slot]], places[slot])
        assert ours == index.tolist()
        assert lengths == torch.diff(ends).tolist()


@pytest.mark.parametrize(("side", "room"), [(2, 196), (4, 200), (8, 260), (16, 196)])
def test_attention_is_that_of_the_image_under_a_mask(side, room):
    rng = np.random.default_rng(side)
    K, D = 2, 4
    _, places = slots(rng, 6, most=7, room=room)
    found = windows.numbers(jnp.asarray(places), side)
    found = jnp.take_along_axis(found, windows.order(found)[0], axis=1)[None]
    starts = np.searchsorted(found[0, 0], np.unique(found[0, 0]))
    if side == 4:
        assert (starts % side**2).any()  # windows that lie in two pieces
    arrays = [jnp.asarray(rng.normal(size=(1, K, 6, room, D)), jnp.float32) for _ in range(4)]

    def within(q, k, v):
        return windows.attend_within(q, k, v, found, side**2)

    def masked(q, k, v):
        k, v = (x.reshape(1, -1, room, D) for x in (k, v))
        return attend(q[:, :, :, None], k, v, found, found, causal=False)[:, :, :, 0]

    real = (np.asarray(found) < np.iinfo(np.int32).max)[:, None, ..., None]
    weights = arrays.pop() * real
    both = []
    for form in (within, masked):
        total = lambda arrays, form=form: (form(*arrays) * weights).sum()  # noqa: E731
        both.append((jax.jit(form)(*arrays) * real, jax.jit(jax.grad(total))(arrays)))
    for a, b in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_blocks_with_windows_cost_in_proportion_to_the_image():
    """Of the published tower, by formula and by the program's largest array."""
    tower = QWEN2_5_VL_7B.vision
    assert len(tower.full_blocks) == 4 and tower.window == 8

    def largest(patches):
        """Elements of the largest array that one block's attention makes."""
        shapes = [jax.ShapeDtypeStruct((1, 2, 1, patches, 80), jnp.float32)] * 3
        numbers = jax.ShapeDtypeStruct((1, 1, patches), jnp.int32)
        program = jax.make_jaxpr(lambda *x: windows.attend_within(*x, 64))(*shapes, numbers)
        return max(v.aval.size for e in program.jaxpr.eqns for v in e.outvars)

    assert largest(16384) == 4 * largest(4096)
    quadratic = 4.0 * 4 * 1280 * np.array([4096.0, 16384.0]) ** 2
    rest = [flops.tower(QWEN2_5_VL_7B, 1, p) for p in (4096, 16384)] - quadratic
    assert rest[1] == pytest.approx(4 * rest[0])
