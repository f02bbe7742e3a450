"""The kernels for TPU and GPU against the plain form: splash interpreted, cuDNN's call lowered."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from benchmarks import attention as measured
from mirg_jax.models import attention, flash
from mirg_jax.runs.engines import KERNEL_OF

B, K, R, D = 1, 2, 2, 8
# Branches, queries a branch, prefix, causal, packed.
CASES = {
    "rows": (1, 40, 0, True, True),
    "prompts": (1, 40, 0, True, False),
    "images": (3, 36, 0, False, False),
    "completions": (3, 25, 30, True, True),
}


@pytest.fixture(params=CASES)
def case(request):
    G, T, P, causal, packed = CASES[request.param]
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
        given |= {"causal": causal, "packed": packed, "engine": engine}
        return attention.attend(q, k, v, *own, **given)

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


@pytest.mark.parametrize(
    ("engine", "partial_bytes"), [("splash", 1 << 29), ("splash", 0), ("cudnn", 0)]
)
def test_values_and_gradients_are_those_of_the_plain_form(
    case, stand_ins, monkeypatch, engine, partial_bytes
):
    monkeypatch.setattr(flash, "_MAX_PARTIAL_BYTES", partial_bytes)
    attend, arrays, weights = case

    def total(arrays, engine):
        return (attend(*arrays, engine=engine) * weights).sum()

    gradients = jax.jit(jax.value_and_grad(total), static_argnums=1)
    value, grads = gradients(arrays, "xla")
    found_value, found_grads = gradients(arrays, engine)
    np.testing.assert_allclose(found_value, value, rtol=1e-4)
    for found, expected in zip(found_grads, grads, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("engine", ["splash", "cudnn"])
def test_16_bit_scores_are_those_of_the_plain_form(stand_ins, engine):
    """With scores of about 100, queries that were rounded otherwise would change whole weights."""
    rng = np.random.default_rng(0)
    q, k, v = (  # 32 ** -0.5 is no power of two: rounding after scaling is another rounding
        jnp.asarray(size * rng.standard_normal((1, 2, 128, 32)), jnp.bfloat16)
        for size in (50, 1, 1)
    )
    q, segments = q[:, :, None, None], jnp.ones((1, 1, 128), jnp.int32)

    def attend(q, engine, causal=True):
        of_queries = segments[..., -q.shape[4] :]
        given = {"causal": causal, "packed": False, "engine": engine}
        out = attention.attend(q, k, v, of_queries, segments, **given)
        return np.asarray(out, np.float32)

    found = attend(q, engine)
    np.testing.assert_allclose(found, attend(q, "xla"), atol=0.04)
    decoded = attend(q[..., -1:, :], engine, causal=False)  # one query is computed without a kernel
    np.testing.assert_allclose(found[..., -1:, :], decoded, atol=0.04)


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


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(28, 4, 128), (16, 16, 80)])
def test_cudnn_takes_our_shapes(monkeypatch, heads, kv_heads, size, packed, branches):
    """Forward and backward lower to its calls, without a card and without a mask's gradient."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda _: False)
    length = 256 * branches

    def total(q, k, v, segments):
        pattern = flash.Pattern(branches, 256, 256, 0, True, packed)
        return flash.cudnn_attention(q, k, v, segments, segments, pattern).sum()

    q, k = (jax.ShapeDtypeStruct((1, n, length, size), jnp.bfloat16) for n in (heads, kv_heads))
    segments = jax.ShapeDtypeStruct((1, length), jnp.int32)
    traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(q, k, k, segments)
    lowered = traced.lower(lowering_platforms=("cuda",)).as_text()
    (call,) = [line for line in lowered.splitlines() if "SoftmaxBackward" in line]
    masked = packed or branches > 1
    assert ("fmhaScaleBiasSoftmaxBackward" in call) == masked
    assert ("CAUSAL" in call) == (branches == 1)
    results = call.rpartition("->")[2]
    assert f"1x1x{length}x{length}x" not in results


@pytest.mark.parametrize("kind", measured.SIZES)
def test_the_kernel_of_this_device_computes_the_same(kind):
    kernel = KERNEL_OF.get(jax.default_backend())
    if kernel is None:
        pytest.skip("needs a GPU or TPU: JAX_PLATFORMS=cuda make test")
    size = measured.SIZES[kind]
    size = size._replace(tokens=256, prefix=min(size.prefix, 128))
    found, expected = (
        [*g(a)[1]] for g, a in (measured.gradients(size, e) for e in (kernel, "xla"))
    )
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = (np.asarray(x, np.float32) for x in (ours, theirs))
        assert np.linalg.norm(ours - theirs) < 0.02 * np.linalg.norm(theirs)
