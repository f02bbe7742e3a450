"""The kernels for TPU and GPU against the plain form: splash interpreted, cuDNN's call lowered."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from mirg_jax.models import attention, flash

B, K, R, D = 1, 2, 2, 8
# Branches, queries a branch, prefix, causal: packed rows, images, completions of a prompt.
CASES = {"rows": (1, 40, 0, True), "images": (3, 36, 0, False), "completions": (3, 25, 30, True)}


@pytest.fixture(params=CASES)
def case(request):
    G, T, P, causal = CASES[request.param]
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    arrays = [normal(B, K, G, R, T, D), normal(B, K * G, T, D), normal(B, K * G, T, D)]
    lengths = rng.integers(T // 2, T + 1, (B, G, 1))
    segments = np.where(np.arange(T) < lengths, 1, 0).astype(np.int32)
    if request.param == "rows":
        segments[..., T // 3 :] *= 2
    own = jnp.asarray(segments), jnp.asarray(segments)
    prefix = {}
    if P:
        arrays += [normal(B, K, P, D), normal(B, K, P, D)]
        prefix = {"prefix_segments": (np.arange(P) < P - 7).astype(np.int32)[None].repeat(B, 0)}

    def attend(q, k, v, *shared, engine):
        names = ("prefix_k", "prefix_v")[: len(shared)]
        given = dict(zip(names, shared, strict=True)) | prefix
        return attention.attend(q, k, v, *own, causal=causal, engine=engine, **given)

    arrays, prefix = jax.tree.map(jnp.asarray, (arrays, prefix))
    weights = normal(B, K, G, R, T, D) * (segments > 0)[:, None, :, None, :, None]
    return attend, arrays, weights


@pytest.fixture
def stand_ins(monkeypatch):
    """The kernels as they run without their device."""
    monkeypatch.setitem(
        flash.ENGINES, "splash", functools.partial(flash.splash_attention, interpret=True)
    )
    monkeypatch.setitem(
        flash.ENGINES, "cudnn", functools.partial(flash.cudnn_attention, implementation="xla")
    )


@pytest.mark.parametrize("engine", ["splash", "cudnn"])
def test_values_and_gradients_are_those_of_the_plain_form(case, stand_ins, engine):
    attend, arrays, weights = case

    def total(arrays, engine):
        return (attend(*arrays, engine=engine) * weights).sum()

    gradients = jax.jit(jax.value_and_grad(total), static_argnums=1)
    value, grads = gradients(arrays, "xla")
    found_value, found_grads = gradients(arrays, engine)
    np.testing.assert_allclose(found_value, value, rtol=1e-4)
    for found, expected in zip(found_grads, grads, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_the_pattern_is_what_its_docstring_draws():
    drawn = """
        x x x . . . . .
        x x x x . . . .
        x x x x x . . .
        x x . . . x . .
        x x . . . x x .
        x x . . . x x x"""
    expected = [[c == "x" for c in line.split()] for line in drawn.strip().splitlines()]
    pattern = flash.Pattern(branches=2, queries=3, keys=3, prefix=2, causal=True)
    np.testing.assert_array_equal(pattern[:, :], expected)
    np.testing.assert_array_equal(pattern[2:4, 1:5], np.array(expected)[2:4, 1:5])


def test_cudnn_takes_our_shapes(monkeypatch):
    """Forward and backward lower to its calls for both towers' head sizes, without a card."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda _: False)

    def total(q, k, v, segments):
        pattern = flash.Pattern(1, 256, 256, 0, True)
        return flash.cudnn_attention(q, k, v, segments, segments, pattern).sum()

    for heads, kv_heads, size in ((28, 4, 128), (16, 16, 80)):
        shapes = [jax.ShapeDtypeStruct((1, n, 256, size), jnp.bfloat16) for n in (heads, kv_heads)]
        segments = jax.ShapeDtypeStruct((1, 256), jnp.int32)
        function = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
        traced = function.trace(shapes[0], shapes[1], shapes[1], segments)
        lowered = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert "fmhaScaleBiasSoftmaxBackward" in lowered
