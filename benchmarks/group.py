"""Inputs of the GRPO benchmarks, and the number of operations that they take.

The default is a group of 8 completions of 128 tokens after a prompt of about 1,100 tokens with four
images of 448×448, on the small model, with the vision tower trained. There are two forms of the
same computation: "shared", which computes images and prompt once per group, and "repeated", the
usual one, where each completion is a separate row with the whole prompt and all images.
"""

from typing import NamedTuple

import jax
import numpy as np

from configs import grpo_tiny
from mirg_jax.data.batching import Item, PackedBatch, Shapes, collate_prompts
from mirg_jax.data.images import ImagePatches
from mirg_jax.data.prompts import Encoded, mrope_positions
from mirg_jax.models import flops
from mirg_jax.models.config import ModelConfig
from mirg_jax.runs import devices
from mirg_jax.runs.loading import Model, load_model
from mirg_jax.runs.settings import Settings, read
from mirg_jax.training.grpo_programs import PolicyOptions

WORDS = 600  # token IDs below this are ordinary words


class Size(NamedTuple):
    """The sizes of a case's inputs."""

    prompts: int = 2
    group: int = 8
    length: int = 128  # new tokens per completion
    images: int = 4  # per prompt
    side: int = 32  # patches along an image's side

    def __str__(self) -> str:
        return (
            f"{self.prompts} prompts of {self.images} images, "
            f"{self.group} completions of {self.length} tokens"
        )


SIZE = Size()


class Task(NamedTuple):
    """The model and the inputs that all implementations are given."""

    size: Size
    settings: Settings
    mesh: jax.sharding.Mesh
    model: Model
    prompts: list[Item]
    rows: list[Item]  # prompt and completion, as in the repeated form
    completions: np.ndarray  # [prompts, group, length]
    advantages: np.ndarray  # [prompts, group]
    reference: np.ndarray  # log-probs by the reference policy, [prompts, group, length]
    old: np.ndarray  # log-probs by the policy that sampled, [prompts, group, length]

    @property
    def policy(self) -> PolicyOptions:
        """How its log-probs are computed; no token is forbidden."""
        forbidden = np.zeros(self.model.config.text.vocab_size, bool)
        settings = self.settings
        return PolicyOptions(self.model.graph, forbidden, settings.grpo, settings.logprob_chunk)


def make_prompt(rng: np.random.Generator, config: ModelConfig, size: Size) -> Item:
    tokens, starts = list(rng.integers(0, WORDS, 20)), []
    for _ in range(size.images):
        starts.append(len(tokens) + 1)
        tokens += [config.vision_start_token_id, *[config.image_token_id] * (size.side**2 // 4)]
        tokens += [config.vision_end_token_id, *rng.integers(0, WORDS, 4)]
    tokens = np.array([*tokens, *rng.integers(0, WORDS, 30)], np.int32)
    grid = size.side, size.side
    images = tuple(
        ImagePatches(
            rng.integers(0, 256, (size.side**2, 3 * config.vision.patch_size**2), np.uint8), grid
        )
        for _ in range(size.images)
    )
    return _item(tokens, tuple(starts), len(tokens), images, config)


def _item(tokens, starts, prompt_length, images, config: ModelConfig) -> Item:
    grids = [(image.grid[0] // 2, image.grid[1] // 2) for image in images]
    positions = mrope_positions(tokens, grids, config.image_token_id)
    return Item(Encoded(tokens, positions, starts, prompt_length), images)


def with_completion(prompt: Item, completion: np.ndarray, config: ModelConfig) -> Item:
    encoded = prompt.encoded
    tokens = np.concatenate([encoded.tokens, completion])
    return _item(tokens, encoded.image_starts, len(encoded.tokens), prompt.images, config)


def make_task(base: str, size: Size = SIZE) -> Task:
    """Random prompts, completions and log-probs for the model in the Hugging Face folder `base`."""
    settings = read(grpo_tiny.get_config())
    mesh = devices.start(settings.devices)
    model = load_model(base, mesh)
    rng = np.random.default_rng(0)
    prompts = [make_prompt(rng, model.config, size) for _ in range(size.prompts)]
    shape = size.prompts, size.group, size.length
    completions = rng.integers(0, WORDS, shape).astype(np.int32)
    rows = [
        with_completion(prompt, completion, model.config)
        for prompt, group in zip(prompts, completions, strict=True)
        for completion in group
    ]
    advantages = rng.standard_normal(shape[:2]).astype(np.float32)
    reference = rng.standard_normal(shape).astype(np.float32) - 6
    return Task(
        size=size,
        settings=settings,
        mesh=mesh,
        model=model,
        prompts=prompts,
        rows=rows,
        completions=completions,
        advantages=advantages,
        reference=reference,
        old=reference + 0.1,
    )


def collate(items: list[Item]) -> PackedBatch:
    """One item a row; all are of one length, their images of one size."""
    first = items[0]
    shapes = Shapes(
        (len(first.encoded.tokens),), (len(first.images),), (len(first.images[0].patches),)
    )
    return collate_prompts(items, shapes, len(items))


class Work:
    """What has to be computed, by formula; nothing that is recomputed is counted."""

    def __init__(self, task: Task):
        self.config, self.size = task.model.config, task.size
        self.prompt = len(task.prompts[0].encoded.tokens)

    def vision(self, times: int) -> float:
        """The tower's forward pass over the images of all prompts, `times` over."""
        size = self.size
        return times * flops.tower(self.config, size.prompts * size.images, size.side**2)

    def forward(self, *, shared: bool) -> float:
        """A forward pass over prompts and completions, log-probs of the completions."""
        B, G, L = self.size[:3]
        P = self.prompt
        if shared:
            tokens, pairs = P + G * L, flops.causal(P) + G * (L * P + flops.causal(L))
        else:
            tokens, pairs = G * (P + L), G * flops.causal(P + L)
        text = flops.decoder(self.config, B * tokens, B * pairs, B * G * L)
        return self.vision(1 if shared else G) + text

    def prefill(self, *, rows: int, towers: int) -> float:
        """Up to the first new token: each prompt `rows` times, its images `towers` times."""
        B = self.size.prompts * rows
        text = flops.decoder(self.config, B * self.prompt, B * flops.causal(self.prompt), B)
        return self.vision(towers) + text

    def decode(self, new: int) -> float:
        """All tokens of all completions after the first of `new`: the same in every form."""
        rows, steps = self.size.prompts * self.size.group, new - 1
        pairs = steps * self.prompt + flops.causal(steps)
        return flops.decoder(self.config, rows * steps, rows * pairs, rows * steps)

    def rollout(self, new: int) -> dict[str, float]:
        """Of each way. transformers' `generate` encodes the images once, but repeats prompts."""
        G = self.size.group
        counts = {"shared": (1, 1), "repeated": (G, G), "transformers": (G, 1)}
        return {
            way: self.prefill(rows=rows, towers=towers) + self.decode(new)
            for way, (rows, towers) in counts.items()
        }

    def update(self) -> dict[str, float]:
        """Forward and backward pass of each way; the backward pass is two forward passes' work."""
        shared, repeated = (3 * self.forward(shared=form) for form in (True, False))
        return {"shared": shared, "repeated": repeated, "transformers": repeated}

    def facts(self) -> dict:
        B, G, L = self.size[:3]
        P, images = self.prompt, self.size.prompts * self.size.images
        return {
            "prompt_tokens": P,
            "decoder_tokens": {"shared": B * (P + G * L), "repeated": B * G * (P + L)},
            "images_encoded": {"shared": images, "repeated": images * G},
        }
