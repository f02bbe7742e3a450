"""Run by tests/test_mesh.py with eight CPU devices: one device beside a mesh, as JSON."""

import json
import re
import sys

import jax

jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp
import numpy as np
import small_families
from flax import nnx

from mirg_jax import defaults, sharding
from mirg_jax.data.batching import PackedBatch
from mirg_jax.models import int8, lora, qwen2_vl
from mirg_jax.models.config import ModelConfig
from mirg_jax.runs.settings import read
from mirg_jax.runs.train_state import init_state, state_shardings
from mirg_jax.sampling.pool import NO_PROMPT, make_feeding
from mirg_jax.sampling.sampler import SamplingConfig, make_sampler, sample_keys
from mirg_jax.sampling.weights import make_weights
from mirg_jax.sharding.memory import with_resident
from mirg_jax.training import grpo_programs, sft
from mirg_jax.training.grpo_programs import Experience, PolicyOptions, Totals
from mirg_jax.training.optimizer import make_apply, make_optimizer
from mirg_jax.types import Images, Text

VOCAB, ROWS, TOKENS, GROUP, NEW = 72, 8, 24, 3, 10
FORBIDDEN = np.arange(VOCAB) % 6 == 5


def batch(patch_bytes: int) -> PackedBatch:
    """Rows of two packed examples with two images each, some shorter, one row empty."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, (ROWS, TOKENS)).astype(np.int32)
    segments = np.where(np.arange(TOKENS) < 14, 1, 2)[None].repeat(ROWS, 0).astype(np.int32)
    for row in range(ROWS):
        segments[row, TOKENS - row :] = 0
    segments[-1] = 0
    positions = np.arange(TOKENS)[None, :, None].repeat(ROWS, 0).repeat(3, -1).astype(np.int32)
    visual = np.where(np.arange(TOKENS) < 8, np.arange(TOKENS), -1)[None].repeat(ROWS, 0)
    grid = np.stack(np.divmod(np.arange(16), 4), -1)[None, None].repeat(ROWS, 0).repeat(2, 1)
    pixels = rng.integers(0, 255, (ROWS, 2, 16, patch_bytes)).astype(np.uint8)
    text = Text(tokens, positions, segments, visual.astype(np.int32))
    return PackedBatch(text, Images(pixels, grid.astype(np.int32)), segments > 0)


def prompts(packed: PackedBatch):
    """The same rows as prompts: their first example alone."""
    text = packed.text._replace(segments=np.where(packed.text.segments == 1, 1, 0))
    return text._replace(segments=np.maximum(text.segments, np.arange(TOKENS) == 0)), packed.images


def fed(graph, mesh, weights, resident, options: SamplingConfig, config: ModelConfig) -> np.ndarray:
    """Tokens of the prompts and of the same ones the other way round, fed to slots in turn."""
    feeding = make_feeding(graph, mesh, FORBIDDEN, options, config.text.num_kv_heads)
    whole = prompts(batch(small_families.patch_bytes(config)))
    parts = whole, jax.tree.map(lambda leaf: leaf[::-1].copy(), whole), whole
    pool, tokens = None, np.zeros((2 * ROWS, GROUP, NEW), np.int32)
    for call, part in enumerate(parts):
        numbers = np.arange(ROWS, dtype=np.int32) + call * ROWS
        if call == 2:  # no more prompts
            numbers[:] = NO_PROMPT
        text, images, numbers = sharding.place_rows((*part, numbers), mesh)
        pool = pool or feeding.open(weights, text, images)
        more = sharding.place_everywhere(np.bool_(call < 2), mesh)
        pool, ended = feeding.feed(resident, weights, pool, text, images, numbers, more)
        known = np.asarray(ended.numbers) != NO_PROMPT
        tokens[np.asarray(ended.numbers)[known]] = np.asarray(ended.rollout.tokens)[known]
    return tokens


def head_sums_in_loops(program: str) -> list[str]:
    """Returns a compiled program's sums over devices, in loops, of anything of the vocabulary."""
    bodies = "|".join(map(re.escape, set(re.findall(r"body=%?([\w.-]+)", program))))
    loops = re.findall(rf"^%(?:{bodies}) .*?^}}", program, re.MULTILINE | re.DOTALL)
    assert loops
    sums = re.compile(rf".*\b{VOCAB}\].* (?:all-reduce|reduce-scatter)(?:-start)?\(.*")
    return [line for loop in loops for line in sums.findall(loop)]


def values(mesh, sampling_tensor: int, config: ModelConfig, adapted: bool) -> dict:
    """One step of SFT, and one of GRPO on tokens that are sampled, on a mesh."""
    graph, params = qwen2_vl.create(config, 0)
    params, frozen = sharding.place_parameters(params, mesh), nnx.State({})
    if adapted:
        frozen, (graph, params) = params, lora.attach(graph, params, lora.Lora(4, tower=True))
        params = jax.tree.map(lambda leaf: 0.3 * leaf, lora.init(params, 1))
        noise = lambda leaf: leaf + 0.1 * np.cos(np.arange(leaf.size)).reshape(leaf.shape)  # noqa: E731
        params = sharding.place_parameters(jax.tree.map(noise, params), mesh)
    recipe = defaults.grpo()
    recipe.optimizer.update(learning_rate=1e-3, warmup_ratio=0.0)
    settings = read(recipe)
    optimizer = make_optimizer(settings.optimizer, 10)
    layout = state_shardings(params, optimizer, mesh)
    state = jax.jit(lambda p: init_state(p, optimizer, 0), out_shardings=layout)(params)
    packed, found = batch(small_families.patch_bytes(config)), {}

    sampling = sharding.sampling_mesh(mesh, sampling_tensor)
    weights = nnx.merge_state(params, frozen)
    _, kinds = int8.attach(graph, weights)
    rounded = jax.device_get(make_weights(weights, jnp.float32, sampling, kinds)(weights))
    found["int8"] = jax.tree.map(lambda leaf: leaf.astype(np.float32), rounded)
    weights = make_weights(weights, jnp.float32, sampling)(weights)
    options = SamplingConfig(group=GROUP, max_tokens=NEW, stop_tokens=(7,))
    sample = with_resident(make_sampler(graph, sampling, FORBIDDEN, options))
    resident = sharding.resident_on((params, state), sampling)
    keys = sample_keys(jax.random.key(3), jnp.arange(ROWS), GROUP)
    text, images = prompts(packed)
    rollout = sample(resident, weights, *sharding.place_rows((text, images, keys), sampling))
    rollout = jax.device_get(rollout)
    found["tokens"], found["logprobs"] = rollout.tokens, rollout.logprobs
    found["fed"] = fed(graph, sampling, weights, resident, options, config)

    with jax.set_mesh(mesh):
        place = lambda tree: sharding.place_rows(tree, mesh)  # noqa: E731
        arguments = None, None, params, frozen, place(packed), jnp.float32(100)
        gradients = sft.make_gradients(graph, layout, chunk=7).add.lower(*arguments).compile()
        assert not head_sums_in_loops(gradients.as_text())
        found["sft_loss"], grads = gradients(*arguments)
        found["sft_gradients"] = grads
        some = place((images.patches, text.tokens, rollout.mask, rollout.logprobs))
        numbers = sharding.place_everywhere(np.array([5, -1, 0, 7, 7, 8, 3, 2], np.int32), mesh)
        found["taken"] = sharding.take_rows(some, numbers, mesh)
        advantages = np.linspace(-1, 1, ROWS * GROUP, dtype=np.float32).reshape(ROWS, GROUP)
        reference = rollout.logprobs - 0.1
        experience = Experience(*place((text, images, rollout, advantages, reference)))
        totals = Totals(jnp.float32(24), jnp.float32(200))
        policy = PolicyOptions(graph, FORBIDDEN, settings.grpo, chunk=7)
        gradients = grpo_programs.make_gradients(layout, policy).add
        (found["grpo_loss"], statistics), grads = gradients(
            None, None, params, frozen, experience, totals, None
        )
        found["grpo_gradients"], found["logprob_diff"] = grads, statistics["logprob_diff"]
        for leaf, where in zip(jax.tree.leaves(grads), jax.tree.leaves(layout.params), strict=True):
            assert leaf.sharding.is_equivalent_to(where, leaf.ndim)
        state, found["norm"] = make_apply(optimizer, layout)(state, grads, found["grpo_loss"])
    for leaf, where in zip(jax.tree.leaves(state), jax.tree.leaves(layout), strict=True):
        assert leaf.sharding.is_equivalent_to(where, leaf.ndim)
    return jax.tree.map(np.asarray, jax.device_get(found))


def apart(a, b) -> float:
    """The largest difference over all arrays of a tree, relative to the largest value in it.

    Losses near zero are sums of large terms: a difference is measured against 1 at least.
    """
    a, b = ([x.astype(np.float64).ravel() for x in jax.tree.leaves(tree)] for tree in (a, b))
    a, b = np.concatenate(a), np.concatenate(b)
    largest = np.abs(b).max()
    return float(np.abs(a - b).max() / (largest if a.size > 1 else max(largest, 1.0)))


def main(meshes):
    alone = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    one = {}
    for data, fsdp, tensor, sampling, adapted, family in meshes:
        config, kind = small_families.config(family, VOCAB), (adapted, family)
        if kind not in one:
            one[kind] = values(alone, 1, config, adapted)
        found = values(sharding.make_mesh(data, fsdp, tensor), sampling, config, adapted)
        differences = {name: apart(found[name], one[kind][name]) for name in found}
        print(json.dumps(differences), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
