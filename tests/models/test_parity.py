"""The families beside transformers: logits, gradients, generated tokens, bfloat16."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import torch
from flax import nnx

from mirg_jax.data.batching import Item, Shapes, collate, collate_prompts
from mirg_jax.data.prompts import Encoded, mrope_positions
from mirg_jax.models.layers import Precision
from mirg_jax.models.options import ModelOptions
from mirg_jax.models.qwen2_vl import last_token
from mirg_jax.training import sft
from mirg_jax.types import Rollout
from mirg_jax.weights import hf, published

SHAPES = Shapes(lengths=(112, 224), slots=(4, 8), patches=(64, 128))
# Unequal sizes, some not multiples of 28, so that they are resized.
SIZES = (((84, 56), (28, 112), (140, 84)), ((56, 56), (101, 75), (28, 28), (61, 130)))
LAYOUTS = {"one row": [[0, 1]], "padded rows": [[1], [], [0]]}
NEW_TOKENS = 64


class Case:
    """One configuration: transformers' model, ours with its weights, and two samples."""

    def __init__(self, name: str, folder):
        self.config = reference.ALL_CONFIGS[name]
        self.torch = reference.torch_model(self.config)
        self.torch.save_pretrained(folder)
        self.folder = folder
        self.graph, self.params = hf.from_pretrained(folder)
        rng, self.vision = np.random.default_rng(1), self.config.vision
        self.shapes = dataclasses.replace(SHAPES, patch=self.vision.patch_size)
        pairs = [reference.sample(rng, sizes, 9, self.vision) for sizes in SIZES]
        self.items = [item for item, _ in pairs]
        self.images = [images for _, images in pairs]

    def torch_logits(self, index: int, model=None) -> torch.Tensor:
        tokens = self.items[index].encoded.tokens
        inputs = reference.torch_inputs(tokens, self.images[index], self.vision)
        return (model or self.torch)(**inputs).logits[0]

    @functools.cached_property
    def logits(self) -> list[np.ndarray]:
        with torch.no_grad():
            return [self.torch_logits(i).numpy() for i in range(len(self.items))]

    @functools.cached_property
    def torch_loss_and_gradients(self) -> tuple[float, dict[str, np.ndarray]]:
        """Mean cross-entropy over the label tokens of both samples."""
        self.torch.zero_grad()
        total, count = 0.0, 0
        for i, item in enumerate(self.items):
            start = item.encoded.prompt_length
            labels = torch.from_numpy(item.encoded.tokens[start:].astype(np.int64))
            logits = self.torch_logits(i)[start - 1 : -1]
            total = total + torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            count += len(labels)
        loss = total / count
        loss.backward()
        gradients = {
            published.published_name(name): parameter.grad.numpy().copy()
            for name, parameter in self.torch.named_parameters()
        }
        return loss.item(), gradients


@pytest.fixture(scope="module", params=reference.ALL_NAMES)
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp(request.param))


# All of Qwen2-VL's, and one of each later family.
some = pytest.mark.parametrize("case", [*reference.CONFIGS, *reference.LATER], indirect=True)


def device(tree):
    return jax.tree.map(jnp.asarray, tree)


# Compiling is most of these tests' time, and the arithmetic doesn't need LLVM's best.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.partial(jit, static_argnums=0)
def forward(graph, params, text, images):
    return nnx.merge(graph, params)(text, images)


def relative(ours, theirs) -> float:
    """‖ours − theirs‖ / ‖theirs‖; 0 where both are 0, as of features that only images get."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-30))


def unpack(array, batch, rows):
    """The parts of each sample, in the samples' order."""
    parts = {
        index: array[b][batch.text.segments[b] == segment]
        for b, row in enumerate(rows)
        for segment, index in enumerate(row, start=1)
    }
    return [parts[i] for i in sorted(parts)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits(case, layout):
    batch = collate(case.items, LAYOUTS[layout], case.shapes)
    ours = np.asarray(forward(case.graph, case.params, *device((batch.text, batch.images))))
    assert np.isfinite(ours).all()  # padding too
    for logits, expected in zip(unpack(ours, batch, LAYOUTS[layout]), case.logits, strict=True):
        scale = expected.std()
        assert 0.3 < scale < 5  # else the weights were badly chosen
        np.testing.assert_allclose(logits, expected, atol=1e-4 * scale, rtol=0)


def test_logits_of_text_alone(case):
    tokens = np.random.default_rng(3).integers(0, reference.WORDS, 20).astype(np.int32)
    positions = mrope_positions(tokens, (), reference.IDS["image_token_id"])
    batch = device(collate([Item(Encoded(tokens, positions, (), 20), ())], [[0]], case.shapes))
    with torch.no_grad():
        expected = case.torch(torch.from_numpy(tokens)[None].long()).logits[0].numpy()
    for images in (None, batch.images):  # no images, and slots that hold none
        ours = forward(case.graph, case.params, batch.text, images)[0, :20]
        np.testing.assert_allclose(ours, expected, atol=1e-4 * expected.std(), rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_the_sft_loss(case, layout):
    batch = device(collate(case.items, LAYOUTS[layout], case.shapes))
    expected_loss, expected = case.torch_loss_and_gradients
    loss = functools.partial(sft.loss, graph=case.graph, chunk=64)
    value, gradients = jit(jax.value_and_grad(loss))(
        case.params, nnx.State({}), batch, jnp.float32(batch.labels.sum())
    )
    assert float(value) == pytest.approx(expected_loss, rel=1e-5)
    ours = dict(hf.tensors_of(gradients, case.config, np.float32))
    assert ours.keys() == expected.keys()
    errors = {name: relative(ours[name], expected[name]) for name in ours}
    assert max(errors.values()) < 1e-3, max(errors.items(), key=lambda pair: pair[1])


def prompts_of(case) -> list[Item]:
    """The samples without their responses."""
    prompts = []
    for item in case.items:
        n = item.encoded.prompt_length
        encoded = item.encoded
        prompts.append(
            Item(
                Encoded(encoded.tokens[:n], encoded.positions[:n], encoded.image_starts, n),
                item.images,
            )
        )
    return prompts


def grids_of(item: Item) -> list[tuple[int, int]]:
    return [(image.grid[0] // 2, image.grid[1] // 2) for image in item.images]


def test_greedy_tokens(case):
    """Prefill and 64 steps give the tokens, and the logits, of transformers' `generate`."""
    prompts = prompts_of(case)
    batch = device(collate_prompts(prompts, case.shapes, size=3))  # a row of padding too
    group = 2

    @jit
    def decode(params, text, images):
        model = nnx.merge(case.graph, params)
        hidden, prefix = model.prefill(text, model.visual(images))
        first = last_token(text, hidden) @ model.head()
        layers = model.decoder.unstack()
        cache = model.decoder.init_cache(len(first), group, NEW_TOKENS)

        def body(carry, _):
            logits, cache = carry
            tokens = logits.argmax(axis=-1)
            offsets = jnp.full(len(tokens), cache.steps)
            hidden, cache = model.step(tokens, offsets, text, layers, prefix, cache)
            return (hidden @ model.head(), cache), (tokens, logits)

        first = jnp.repeat(first[:, None], group, axis=1)
        return jax.lax.scan(body, (first, cache), length=NEW_TOKENS)[1]

    tokens, logits = map(np.asarray, decode(case.params, batch.text, batch.images))
    assert np.isfinite(logits).all()
    for i, prompt in enumerate(prompts):
        theirs = case.torch.generate(
            **reference.torch_inputs(prompt.encoded.tokens, case.images[i], case.vision),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            return_dict_in_generate=True,
            output_logits=True,
        )
        expected = theirs.sequences[0, prompt.encoded.prompt_length :].numpy()
        assert len(expected) == NEW_TOKENS and len(set(expected)) > 3  # not stuck on one word
        expected_logits = torch.cat(theirs.logits).numpy()
        for branch in range(group):
            np.testing.assert_array_equal(tokens[:, i, branch], expected)
            np.testing.assert_allclose(
                logits[:, i, branch], expected_logits, atol=1e-4 * expected_logits.std(), rtol=0
            )


@some
def test_shared_prompts_equal_repeated_prompts(case):
    """Logits and gradients of G completions of a prompt computed once, and of G whole rows."""
    prompts, rng = prompts_of(case), np.random.default_rng(2)
    G, L = 3, 10
    completions = rng.integers(0, reference.WORDS, (len(prompts), G, L)).astype(np.int32)
    lengths = np.array([[10, 4, 7], [1, 10, 6]])
    mask = np.arange(L) < lengths[..., None]
    weights = jnp.asarray(rng.standard_normal(mask.shape) * mask, jnp.float32)
    shared = device(collate_prompts(prompts, case.shapes, size=len(prompts)))

    repeated_items = []
    for b, prompt in enumerate(prompts):
        for g in range(G):
            encoded = prompt.encoded
            tokens = np.concatenate([encoded.tokens, completions[b, g, : lengths[b, g]]])
            positions = mrope_positions(tokens, grids_of(prompt), reference.IDS["image_token_id"])
            repeated_items.append(
                Item(
                    Encoded(tokens, positions, encoded.image_starts, len(encoded.tokens)),
                    prompt.images,
                )
            )
    rows = [[0, 3], [1, 4], [2, 5]]
    repeated = collate(repeated_items, rows, Shapes((256,), (8,), (128,), case.shapes.patch))
    # Where, in the repeated rows, the state stands that predicts each completion token.
    row, column = np.zeros(mask.shape, int), np.zeros(mask.shape, int)
    for b in range(len(prompts)):
        for g in range(G):
            start = int(np.argmax(repeated.text.segments[g] == b + 1))
            row[b, g] = g
            column[b, g] = start + len(prompts[b].encoded.tokens) - 1 + np.arange(L)
    column = np.minimum(column, repeated.text.tokens.shape[1] - 1)
    repeated = device(repeated)

    def objective(logits):
        logprobs = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(logprobs, completions[..., None], axis=-1)[..., 0]
        return (picked * weights).sum(), logits

    def share(params, shared):
        model = nnx.merge(case.graph, params)
        rollout = Rollout(jnp.asarray(completions), jnp.asarray(mask), jnp.zeros(mask.shape))
        hidden = model.completion_hidden(shared.text, shared.images, rollout)
        return objective(hidden @ model.head())

    def repeat(params, repeated):
        model = nnx.merge(case.graph, params)
        hidden = model.hidden(repeated.text, model.visual(repeated.images))
        return objective(hidden[row, column] @ model.head())

    results = [
        jit(jax.value_and_grad(form, has_aux=True))(case.params, batch)
        for form, batch in ((share, shared), (repeat, repeated))
    ]
    (((value, logits), gradients), ((expected_value, expected_logits), expected)) = results
    scale = float(expected_logits[mask].std())
    np.testing.assert_allclose(logits[mask], expected_logits[mask], atol=1e-4 * scale, rtol=0)
    assert float(value) == pytest.approx(float(expected_value), rel=1e-5)
    errors = jax.tree.map(relative, gradients, expected)
    assert max(jax.tree.leaves(errors)) < 1e-3, errors


@some
def test_bfloat16_is_as_good_as_transformers(case):
    """Our error against our float32 is about that of transformers against its own, or less."""
    half = reference.torch_model(case.config).to(torch.bfloat16)
    with torch.no_grad():
        theirs = [case.torch_logits(i, half).float().numpy() for i in range(len(case.items))]
    rows = LAYOUTS["one row"]
    batch = collate(case.items, rows, case.shapes)
    for precision in (Precision(jnp.bfloat16, jnp.bfloat16), Precision(jnp.bfloat16, jnp.float32)):
        graph, params = hf.from_pretrained(case.folder, ModelOptions(precision))
        ours = unpack(
            np.asarray(forward(graph, params, *device((batch.text, batch.images)))), batch, rows
        )
        exact = np.concatenate(case.logits)
        our_error = relative(np.concatenate(ours), exact)
        their_error = relative(np.concatenate(theirs), exact)
        assert 1e-4 < our_error < 1.5 * their_error, (our_error, their_error)
