"""GRPO's loss with each prompt computed once, beside whole rows: prompt, images, one completion."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_families
from flax import nnx

from mirg_jax import defaults
from mirg_jax.models import lora
from mirg_jax.models.qwen2_vl import completion_positions, create
from mirg_jax.rl.logprobs import exact_kl, token_logprobs
from mirg_jax.runs.settings import read
from mirg_jax.training import grpo_programs
from mirg_jax.training.grpo_programs import Experience, PolicyOptions, Totals
from mirg_jax.types import Images, Rollout, Text

VOCAB, WIDTH, LENGTH = 60, 20, 9
FORBIDDEN = np.arange(VOCAB) % 6 == 5
LENGTHS = np.array([20, 13])  # of the prompts; the first eight tokens of each are two images


def prompts(patch_bytes):
    rng, B = np.random.default_rng(0), len(LENGTHS)
    segments = (np.arange(WIDTH) < LENGTHS[:, None]).astype(np.int32)
    tokens = rng.integers(0, VOCAB, (B, WIDTH)) * segments
    # As M-RoPE has it, positions of images rise slower than their tokens.
    positions = np.maximum(np.arange(WIDTH) // 4, np.arange(WIDTH) - 6)
    positions = np.broadcast_to(positions[None, :, None], (B, WIDTH, 3))
    visual = np.where(np.arange(WIDTH) < 8, np.arange(WIDTH), -1)[None].repeat(B, 0)
    grid = np.stack(np.divmod(np.arange(16), 4), -1)[None, None].repeat(B, 0).repeat(2, 1)
    pixels = rng.integers(0, 255, (B, 2, 16, patch_bytes)).astype(np.uint8)
    return Text(tokens, positions, segments, visual), Images(pixels, grid)


def rollout(group):
    rng = np.random.default_rng(group)
    shape = (len(LENGTHS), group, LENGTH)
    tokens = rng.choice(np.flatnonzero(~FORBIDDEN), shape)
    lengths = rng.integers(1, LENGTH + 1, shape[:2])
    lengths.flat[0] = LENGTH
    mask = np.arange(LENGTH) < lengths[..., None]
    logprobs = np.where(mask, rng.normal(-4, 0.2, shape), 0.0).astype(np.float32)
    return Rollout(np.where(mask, tokens, 0), mask, logprobs)


def whole_rows(prompt, images, drawn):
    """Text and images of B · G rows, and where in each the predicting states stand."""
    group = drawn.tokens.shape[1]
    after = np.asarray(
        completion_positions(Text(*map(jnp.asarray, prompt)), jnp.arange(LENGTH)[None])
    )
    rows = []
    for b, length in enumerate(LENGTHS):
        for g in range(group):
            row = []
            own = (drawn.tokens[b, g], after[b], drawn.mask[b, g], np.full(LENGTH, -1))
            for whole, new in zip((x[b] for x in prompt), own, strict=True):
                padding = np.zeros((WIDTH - length, *whole.shape[1:]), int)
                row.append(np.concatenate([whole[:length], new, padding]))
            rows.append(row)
    text = Text(*map(np.stack, zip(*rows, strict=True)))
    at = np.repeat(LENGTHS, group)[:, None] - 1 + np.arange(LENGTH)
    return text, Images(*(np.repeat(x, group, axis=0) for x in images)), at


def repeated_loss(params, frozen, text, images, at, given, head, *, graph, grpo):
    """Equation 5 with every completion in a row of its own, written out."""
    model = nnx.merge(graph, params, frozen)
    hidden = model.hidden(text, model.visual(images))
    hidden = jnp.take_along_axis(hidden, at[..., None], axis=1).reshape(
        *given.rollout.mask.shape, -1
    )
    options = {"temperature": grpo.temperature, "forbidden": FORBIDDEN, "chunk": 1000}
    logprobs = token_logprobs(hidden, model.head(), given.rollout.tokens, **options)
    ratio = jnp.exp(logprobs - given.rollout.logprobs)
    A = given.advantages[..., None]
    held = jnp.clip(ratio, 1 - grpo.clip_low, 1 + grpo.clip_high)
    values = -jnp.minimum(ratio * A, held * A)
    if grpo.beta and grpo.kl == "exact":
        values += grpo.beta * exact_kl(hidden, model.head(), given.reference, head, **options)
    elif grpo.beta:
        d = given.reference - logprobs
        values += grpo.beta * (jnp.exp(d) - 1 - d)
    mask = given.rollout.mask
    return (jnp.where(mask, values, 0.0).sum(-1) / mask.sum(-1)).mean()


@pytest.mark.parametrize(
    ("family", "group", "beta", "kl", "adapted"),
    [
        ("qwen2_vl", 2, 0.0, "k3", False),
        ("qwen2_vl", 5, 0.5, "k3", True),
        ("qwen2_vl", 8, 0.5, "exact", False),
        *((family, 2, 0.04, "k3", False) for family in small_families.LATER),
        pytest.param("qwen2_vl", 1, 0.04, "k3", False, marks=pytest.mark.slow),
        pytest.param("qwen2_vl", 16, 0.04, "k3", False, marks=pytest.mark.slow),
        *(
            pytest.param(family, 5, 0.5, "k3", True, marks=pytest.mark.slow)
            for family in small_families.LATER
        ),
        pytest.param("qwen3_vl", 16, 0.5, "exact", False, marks=pytest.mark.slow),
    ],
)
def test_loss_and_every_gradient_equal_the_repeated_forms(family, group, beta, kl, adapted):
    size = small_families.config(family, VOCAB, tied=True)
    graph, params = create(size, 0)
    frozen = nnx.State({})
    if adapted:
        frozen, (graph, params) = params, lora.attach(graph, params, lora.Lora(4, tower=True))
        params = jax.tree.map(
            lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), lora.init(params, 1)
        )
    config = defaults.grpo()
    config.grpo.update(beta=beta, kl=kl)
    grpo = read(config).grpo
    given_prompts = prompts(small_families.patch_bytes(size))
    prompt, images = jax.tree.map(jnp.asarray, given_prompts)
    drawn = rollout(group)
    rng = np.random.default_rng(9)
    advantages = rng.normal(size=drawn.mask.shape[:2]).astype(np.float32)
    head = None
    if kl == "exact":
        head = jnp.asarray(rng.normal(size=(32, VOCAB)), jnp.float32)
        reference = rng.normal(size=(*drawn.mask.shape, 32)).astype(np.float32)
    else:
        reference = drawn.logprobs + rng.normal(0, 0.3, drawn.mask.shape).astype(np.float32)
    given = Experience(prompt, images, drawn, advantages, reference)
    totals = Totals(jnp.float32(drawn.mask.shape[0] * group), jnp.float32(drawn.mask.sum()))

    options = PolicyOptions(graph, FORBIDDEN, grpo, chunk=4)
    shared = functools.partial(grpo_programs.loss, options=options)
    (value, _), gradients = jax.jit(jax.value_and_grad(shared, has_aux=True))(
        params, frozen, given, totals, head
    )
    rows = whole_rows(*given_prompts, drawn)
    repeated = functools.partial(repeated_loss, graph=graph, grpo=grpo)
    expected, expected_gradients = jax.jit(jax.value_and_grad(repeated))(
        params, frozen, *rows, given, head
    )
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    assert abs(float(expected)) > 1e-3
    gradients, expected_gradients = (
        {
            jax.tree_util.keystr(path): np.asarray(x, np.float64)
            for path, x in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (gradients, expected_gradients)
    )
    for name, wanted in expected_gradients.items():
        assert np.linalg.norm(gradients[name] - wanted) < 1e-5 * np.linalg.norm(wanted), name
