"""GRPO with a group's images and prompt computed once, beside the same with them repeated.

Four images of 448×448 and about 1,100 prompt tokens, a group of 8, 128 new tokens, the vision tower
trained, layers recomputed in the backward pass, on the small model. "repeated" is the usual form by
the same model: every completion is a row of its own with the whole prompt and all its images.
"transformers" does what TRL's GRPOTrainer does: whole rows through the model, log-probs from its
last logits.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from benchmarks.reference import torch_inputs, torch_model
from benchmarks.side_by_side import Variant
from configs import grpo_tiny
from mirg_jax import sharding
from mirg_jax.data.batching import Item, PackedBatch, Shapes, collate_prompts
from mirg_jax.data.images import PATCH_BYTES, ImagePatches
from mirg_jax.data.prompts import Encoded, mrope_positions
from mirg_jax.models.config import ModelConfig
from mirg_jax.rl import objective
from mirg_jax.rl.logprobs import token_logprobs
from mirg_jax.sampling.sampler import SamplingConfig, make_sampler, sample_keys
from mirg_jax.training import setup
from mirg_jax.training.checkpoint import Model, load_model
from mirg_jax.training.grpo import Experience, Totals
from mirg_jax.training.grpo import loss as shared_loss
from mirg_jax.types import Rollout

PROMPTS, GROUP, LENGTH = 2, 8, 128
IMAGES, SIDE = 4, 32  # images a prompt; patches a side
WORDS = 600  # ids below are plain


class Task(NamedTuple):
    """What all ways are given."""

    config: object
    mesh: jax.sharding.Mesh
    model: Model
    prompts: list[Item]
    rows: list[Item]  # prompt and completion, as the repeated form has them
    completions: np.ndarray  # [prompts, group, length]
    shared: PackedBatch
    advantages: np.ndarray  # [prompts, group]
    reference: np.ndarray  # log-probs of the reference policy, [prompts, group, length]
    old: np.ndarray  # and of the policy that sampled


def _prompt(rng: np.random.Generator, config: ModelConfig) -> Item:
    tokens, starts = list(rng.integers(0, WORDS, 20)), []
    count = SIDE * SIDE // 4
    for _ in range(IMAGES):
        starts.append(len(tokens) + 1)
        tokens += [config.vision_start_token_id, *[config.image_token_id] * count]
        tokens += [config.vision_end_token_id, *rng.integers(0, WORDS, 4)]
    tokens = np.array([*tokens, *rng.integers(0, WORDS, 30)], np.int32)
    positions = mrope_positions(tokens, [(SIDE // 2, SIDE // 2)] * IMAGES, config.image_token_id)
    images = tuple(
        ImagePatches(rng.integers(0, 256, (SIDE * SIDE, PATCH_BYTES), np.uint8), (SIDE, SIDE))
        for _ in range(IMAGES)
    )
    return Item(Encoded(tokens, positions, tuple(starts), len(tokens)), images)


def _with_completion(prompt: Item, completion: np.ndarray, config: ModelConfig) -> Item:
    tokens = np.concatenate([prompt.encoded.tokens, completion])
    grids = [(SIDE // 2, SIDE // 2)] * IMAGES
    positions = mrope_positions(tokens, grids, config.image_token_id)
    length = len(prompt.encoded.tokens)
    return Item(Encoded(tokens, positions, prompt.encoded.image_starts, length), prompt.images)


def _task(base: str) -> Task:
    config = grpo_tiny.get_config()
    mesh = setup.use_devices(config)
    model = load_model(base, mesh, remat="full")
    rng = np.random.default_rng(0)
    prompts = [_prompt(rng, model.config) for _ in range(PROMPTS)]
    completions = rng.integers(0, WORDS, (PROMPTS, GROUP, LENGTH)).astype(np.int32)
    rows = [
        _with_completion(prompt, completion, model.config)
        for prompt, group in zip(prompts, completions, strict=True)
        for completion in group
    ]
    advantages = rng.standard_normal((PROMPTS, GROUP)).astype(np.float32)
    reference = rng.standard_normal((PROMPTS, GROUP, LENGTH)).astype(np.float32) - 6
    return Task(
        config=config,
        mesh=mesh,
        model=model,
        prompts=prompts,
        rows=rows,
        completions=completions,
        shared=_collate(prompts),
        advantages=advantages,
        reference=reference,
        old=reference + 0.1,
    )


def _collate(items: list[Item]) -> PackedBatch:
    """One item a row; all are of one length."""
    shapes = Shapes((len(items[0].encoded.tokens),), (IMAGES,), (SIDE * SIDE,))
    return collate_prompts(items, shapes, len(items))


def _loss_options(task: Task) -> dict:
    return {
        "forbidden": np.zeros(task.model.config.text.vocab_size, bool),
        "chunk": task.config.logprob_chunk,
    }


def repeated_loss(params, batch: PackedBatch, old, advantages, reference, *, graph, task: Task):
    """The same loss with every completion behind its own copy of the prompt."""
    config = task.config.grpo
    model = nnx.merge(graph, params)
    hidden = model.hidden(batch.text, model.visual(batch.images))
    hidden = hidden[:, -LENGTH - 1 : -1]  # the states that predict the completion
    tokens = batch.text.tokens[:, -LENGTH:]
    options = _loss_options(task) | {"temperature": config.temperature}
    logprobs = token_logprobs(hidden, model.head(), tokens, **options)
    logprobs = logprobs.reshape(-1, GROUP, LENGTH)
    policy = objective.policy_loss(logprobs, old, advantages)
    kl = objective.kl_estimate(logprobs, reference, config.kl, config.kl_clamp)
    mask = jnp.ones(logprobs.shape, bool)
    sizes = {"sequences": PROMPTS * GROUP, "tokens": PROMPTS * GROUP * LENGTH}
    return objective.reduce_tokens(
        policy.loss + config.beta * kl, mask, config.normalisation, **sizes
    )


def _updates(task: Task):
    """Compiled `() -> (loss, gradients)` of the shared and of the repeated form."""
    graph = task.model.graph
    place = functools.partial(sharding.place_rows, mesh=task.mesh)
    ones = np.ones(task.completions.shape, bool)
    experience = Experience(
        *place((task.shared.text, task.shared.images)),
        place(Rollout(task.completions, ones, task.old)),
        *place((task.advantages, task.reference)),
    )
    totals = Totals(np.float32(PROMPTS * GROUP), np.float32(ones.sum()))
    options = {"graph": graph, "config": task.config.grpo, **_loss_options(task)}

    def shared(params, experience):
        function = functools.partial(shared_loss, **options)
        (value, _), grads = jax.value_and_grad(function, has_aux=True)(
            params, nnx.State({}), experience, totals, None
        )
        return value, grads

    def repeated(params, *arguments):
        function = functools.partial(repeated_loss, graph=graph, task=task)
        return jax.value_and_grad(function)(params, *arguments)

    rows = place((_collate(task.rows), task.old, task.advantages, task.reference))
    params = task.model.params
    compiled = {
        "shared": jax.jit(shared).lower(params, experience).compile(),
        "repeated": jax.jit(repeated).lower(params, *rows).compile(),
    }
    return compiled, {
        "shared": lambda: compiled["shared"](params, experience),
        "repeated": lambda: compiled["repeated"](params, *rows),
    }


def _torch_update(task: Task, base: str):
    """Loss and gradients by whole rows, log-probs from the last logits of each, as TRL has it."""
    model = torch_model(base)
    inputs = torch_inputs(task.rows, model, left=True)
    tokens = inputs["input_ids"][:, -LENGTH:]
    old = torch.tensor(task.old).reshape(-1, LENGTH)
    reference = torch.tensor(task.reference).reshape(-1, LENGTH)
    advantages = torch.tensor(task.advantages).reshape(-1, 1)
    beta = task.config.grpo.beta

    def run():
        model.zero_grad()
        logits = model(**inputs, logits_to_keep=LENGTH + 1).logits[:, :-1]
        chosen = logits.gather(-1, tokens[..., None])[..., 0]
        logprobs = chosen - torch.logsumexp(logits, dim=-1)
        ratio = torch.exp(logprobs - old)
        policy = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        delta = (reference - logprobs).clamp(-10, 10)
        loss = (policy + beta * (torch.exp(delta) - 1 - delta)).mean()
        loss.backward()
        return loss.item()

    return run


def _counts(task: Task) -> dict:
    """What has to be computed, in tokens and in operations of the forward pass."""
    text, vision = task.model.config.text, task.model.config.vision
    P = len(task.prompts[0].encoded.tokens)
    width, kv = text.hidden_size, text.num_kv_heads * text.head_dim
    a_token = text.num_layers * (2 * width * (width + kv) + 3 * width * text.intermediate_size)
    a_patch = vision.depth * (4 + 2 * vision.mlp_ratio) * vision.embed_dim**2

    def flops(rows: int, towers: int, tokens: int, pairs: int) -> float:
        images = towers * IMAGES * SIDE**2
        seeing = 2 * images * (a_patch + 2 * vision.depth * SIDE**2 * vision.embed_dim)
        head = rows * LENGTH * width * text.vocab_size
        return seeing + 2 * (tokens * a_token + head + 2 * text.num_layers * pairs * width)

    own = LENGTH * (LENGTH + 1) // 2
    G, B = GROUP, PROMPTS
    shared = flops(B * G, B, B * (P + G * LENGTH), B * (P * P // 2 + G * (own + LENGTH * P)))
    whole = P + LENGTH
    repeated = flops(B * G, B * G, B * G * whole, B * G * whole * whole // 2)
    return {
        "prompt_tokens": P,
        "decoder_tokens": {"shared": B * (P + G * LENGTH), "repeated": B * G * whole},
        "images": {"shared": B * IMAGES, "repeated": B * G * IMAGES},
        "forward_gflops": {"shared": shared / 1e9, "repeated": repeated / 1e9},
        "counted_ratio": repeated / shared,
    }


def grpo_update(base: str) -> Iterator[Variant]:
    """Loss and gradients of one rollout."""
    task = _task(base)
    compiled, run = _updates(task)
    theirs = _torch_update(task, base)
    losses = {}

    def timed(name):
        def way():
            value = run[name]()[0]
            losses[name] = float(value)

        return way

    def difference():
        """The largest relative difference of a parameter's gradient."""
        pairs = zip(*(jax.tree.leaves(run[name]()[1]) for name in compiled), strict=True)
        return max(float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) for a, b in pairs)

    yield Variant(
        f"{PROMPTS} prompts of {IMAGES} images, {GROUP} completions of {LENGTH} tokens",
        {
            "shared": timed("shared"),
            "repeated": timed("repeated"),
            "transformers": lambda: losses.update(transformers=theirs()),
        },
        _counts(task)
        | {
            "temporary_bytes": {
                name: step.memory_analysis().temp_size_in_bytes for name, step in compiled.items()
            },
            "loss": losses,
            "gradient_difference": difference,
        },
    )


def rollout(base: str) -> Iterator[Variant]:
    """Prefill alone (vision included), then whole rollouts; no stop token."""
    task = _task(base)
    graph, params = task.model.graph, task.model.params
    forbidden = np.zeros(task.model.config.text.vocab_size, bool)
    place = functools.partial(sharding.place_rows, mesh=task.mesh)
    shared = place((task.shared.text, task.shared.images))
    again = jax.tree.map(lambda x: np.repeat(x, GROUP, axis=0), task.shared)
    repeated = place((again.text, again.images))
    keys = sample_keys(jax.random.key(0), jnp.arange(PROMPTS), GROUP)
    reference = torch_model(base)
    inputs = torch_inputs(task.prompts, reference, left=True)

    for new in (1, LENGTH):
        config = SamplingConfig(group=GROUP, max_tokens=new)
        one = SamplingConfig(group=1, max_tokens=new)
        samplers = [make_sampler(graph, task.mesh, forbidden, c) for c in (config, one)]
        tokens = {}

        def ours(samplers=samplers, tokens=tokens):
            tokens["shared"] = jax.device_get(samplers[0](params, *shared, keys).tokens)

        def rows(samplers=samplers, tokens=tokens, new=new):
            found = samplers[1](params, *repeated, keys.reshape(-1, 1)).tokens
            tokens["repeated"] = jax.device_get(found).reshape(PROMPTS, GROUP, new)

        def theirs(new=new):
            with torch.no_grad():
                reference.generate(
                    **inputs,
                    do_sample=True,
                    top_k=0,
                    num_return_sequences=GROUP,
                    max_new_tokens=new,
                    min_new_tokens=new,
                )

        yield Variant(
            f"{new} new tokens",
            {"shared": ours, "repeated": rows, "transformers": theirs},
            {
                "equal_tokens": lambda tokens=tokens: float(
                    (tokens["shared"] == tokens["repeated"]).mean()
                )
            },
        )


CASES = {"grpo_update": grpo_update, "rollout": rollout}
