"""Makes the small base model of the demo, from random weights, on a CPU.

    python scripts/make_small_base.py --output_dir=assets/small_base

It learns what a pretrained vision-language model brings along, in three ways at once: to see
(single pictures, with a dense loss on the vision tower), to answer in the trajectories' format,
and to look things up in lists (with a loss on a few attention heads). It never meets a question
about several pictures. The result is a plain Qwen2-VL in Hugging Face's format.
"""

import dataclasses
import functools
import json
import pathlib
import queue
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from flax import nnx
from PIL import Image
from transformers import AutoTokenizer

from mirg_jax import sharding
from mirg_jax.data import base_turns, small_tokenizer
from mirg_jax.data.attention_patterns import HEADS, PATTERNS, Annotator
from mirg_jax.data.batching import Item, Shapes, collate
from mirg_jax.data.images import ImagePatches, patchify
from mirg_jax.data.prompts import Encoded, mrope_positions
from mirg_jax.data.scenes import (
    COLOURS,
    GRID,
    SHAPES,
    STEP,
    Ground,
    Thing,
    choose_looks,
    close_up,
    draw,
    place,
)
from mirg_jax.defaults import sft
from mirg_jax.models import qwen2_vl
from mirg_jax.models.config import ModelConfig, TextConfig, VisionConfig
from mirg_jax.rl.logprobs import token_logprobs
from mirg_jax.training.state import make_optimizer
from mirg_jax.types import Images, Text
from mirg_jax.weights import hf

OUTPUT = flags.DEFINE_string("output_dir", None, "Folder to write.", required=True)
SEE_STEPS = flags.DEFINE_integer("see_steps", 200, "Steps of the vision tower alone.")
STEPS = flags.DEFINE_integer("steps", 900, "Steps of the whole model.")
ROWS = flags.DEFINE_integer("rows", 24, "Token rows a step.")
POOL = flags.DEFINE_integer("pool", 12000, "Pictures drawn.")
LEARNING_RATE = flags.DEFINE_float("learning_rate", 1e-2, "Peak.")
PATTERN_WEIGHT = flags.DEFINE_float("pattern_weight", 0.2, "Weight of the attention loss.")
SEED = flags.DEFINE_integer("seed", 0, "Of everything.")
START = flags.DEFINE_string("init_from", "", "Folder of an earlier base to go on from.")

LENGTH, SLOTS = 184, 2
SHAPES_OF_ARRAYS = Shapes(lengths=(LENGTH,), slots=(SLOTS,), patches=(16,))
BINS = GRID // STEP + 1
_OUTPUTS = 1 + len(COLOURS) + len(SHAPES) + 4 * BINS  # of a probe, for one thing


def model_config(tokenizer) -> ModelConfig:
    def token(name):
        return tokenizer.convert_tokens_to_ids(f"<|{name}|>")

    return ModelConfig(
        text=TextConfig(
            vocab_size=-(-len(tokenizer) // 16) * 16,
            hidden_size=128,
            intermediate_size=256,
            num_layers=4,
            num_heads=4,
            num_kv_heads=4,
            rope_theta=1e4,
            mrope_section=(8, 4, 4),
            rms_norm_eps=1e-6,
            tie_word_embeddings=True,
        ),
        vision=VisionConfig(depth=2, embed_dim=96, num_heads=4, mlp_ratio=4, out_dim=128),
        image_token_id=token("image_pad"),
        video_token_id=token("video_pad"),
        vision_start_token_id=token("vision_start"),
        vision_end_token_id=token("vision_end"),
        bos_token_id=token("endoftext"),
        eos_token_id=token("im_end"),
    )


# Data ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Picture:
    patches: ImagePatches
    things: tuple[Thing, ...]
    seen: "Seen"


class Seen(NamedTuple):
    """What there is to see in pictures: [..., things, ...], two things each at most."""

    covers: np.ndarray  # [P, 2] bool: the thing reaches into the patch
    colour: np.ndarray  # [2]
    shape: np.ndarray  # [2]
    bins: np.ndarray  # [2, 4]: the box's coordinates in steps


# Top left corners of the patches, in pixels, in 2×2 merge-block order.
_CORNERS = 14 * np.array(
    [(2 * i + k, 2 * j + m) for i in (0, 1) for j in (0, 1) for k in (0, 1) for m in (0, 1)]
)


def see(things: tuple[Thing, ...]) -> Seen:
    seen = Seen(np.zeros((16, 2), bool), *np.zeros((2, 2), np.int32), np.zeros((2, 4), np.int32))
    for m, thing in enumerate(things):
        x1, y1, x2, y2 = (c * 56 / GRID for c in thing.box)
        rows, columns = _CORNERS.T
        inside = (x1 < columns + 14) & (x2 > columns) & (y1 < rows + 14) & (y2 > rows)
        seen.covers[:, m] = inside
        seen.colour[m] = list(COLOURS).index(thing.colour)
        seen.shape[m] = SHAPES.index(thing.shape)
        seen.bins[m] = np.array(thing.box) // STEP
    return seen


def draw_picture(rng: np.random.Generator) -> Picture:
    """One or two things; sometimes a close-up of one."""
    if rng.random() < 0.35:
        things = place(rng, choose_looks(rng, 1), sides=(260, 600))
    else:
        things = place(rng, choose_looks(rng, 2))
    image = draw(rng, things, Ground.random(rng))
    if rng.random() < 0.15 and (cut := close_up(rng, image, things, 0)):
        image, thing = cut
        things = (thing,)
    return Picture(patchify(Image.fromarray(image), 56**2, 56**2), things, see(things))


class Batch(NamedTuple):
    text: Text
    images: Images
    labels: np.ndarray  # [B, T] bool
    queries: np.ndarray  # [patterns, B, T]
    keys: np.ndarray  # [patterns, B, T]
    seen: Seen  # [B, S, ...]


class Source:
    """Endless batches, made in a thread."""

    def __init__(self, tokenizer, pictures: list[Picture], rng: np.random.Generator, rows: int):
        self._tokenizer, self._pictures, self._rng, self._rows = tokenizer, pictures, rng, rows
        self._annotate = Annotator(tokenizer)
        self._pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self._queue = queue.Queue(maxsize=4)
        threading.Thread(target=self._work, daemon=True).start()

    def __next__(self) -> Batch:
        return self._queue.get()

    def _work(self) -> None:
        while True:
            self._queue.put(self._batch())

    def _conversation(self, turns: int) -> tuple[Item, np.ndarray, dict[int, Picture]]:
        """An item, which of its tokens are learned, and its pictures; 0 turns: a look-up."""
        rng = self._rng
        first = int(rng.integers(1, 5 - max(turns, 1)))
        chosen = [self._pictures[i] for i in rng.integers(len(self._pictures), size=turns)]
        if turns:
            scenes = [picture.things for picture in chosen]
            conversation = base_turns.single_image(rng, scenes, first)
        else:
            conversation = [base_turns.look_up_in_list(rng)]
        ids, labels = [], []
        for i, turn in enumerate(conversation):
            for text, learned in (("\n" * (i > 0) + turn.prompt, False), (turn.learned, True)):
                piece = self._tokenizer.encode(text, add_special_tokens=False)
                ids += piece
                labels += [learned] * len(piece)
        ids = np.array(ids, np.int32)
        counts = np.where(ids == self._pad, 4, 1)
        starts = (np.cumsum(counts) - counts)[ids == self._pad]
        tokens, labels = np.repeat(ids, counts), np.repeat(labels, counts)
        positions = mrope_positions(tokens, [(2, 2)] * turns, self._pad)
        encoded = Encoded(tokens, positions, tuple(starts.tolist()), 0)
        return (
            Item(encoded, tuple(p.patches for p in chosen)),
            labels,
            dict(enumerate(chosen, first)),
        )

    def _batch(self) -> Batch:
        items, rows, labels, codes, seen = [], [], [], [], []
        for _ in range(self._rows):
            plan = (2,) if self._rng.random() < 0.4 else (1, 0)
            row, room = [], LENGTH
            learned, queries, keys = (
                np.zeros(LENGTH, bool),
                *np.zeros((2, len(PATTERNS), LENGTH), np.int32),
            )
            shown = []
            for turns in plan:
                item, marks, chosen = self._conversation(turns)
                if len(marks) > room:
                    continue
                at = slice(LENGTH - room, LENGTH - room + len(marks))
                learned[at] = marks
                code = self._annotate(item.encoded.tokens, {n: p.things for n, p in chosen.items()})
                queries[:, at], keys[:, at] = code
                room -= len(marks)
                shown += [picture.seen for picture in chosen.values()]
                row.append(len(items))
                items.append(item)
            rows.append(row)
            labels.append(learned)
            codes.append((queries, keys))
            seen.append(shown + [see(())] * (SLOTS - len(shown)))
        packed = collate(items, rows, SHAPES_OF_ARRAYS)
        slots = packed.images.patches.shape[1]
        seen = [row[:slots] for row in seen]
        seen = Seen(*(np.array([[s[i] for s in row] for row in seen]) for i in range(4)))
        queries, keys = (np.stack(part, axis=1) for part in zip(*codes, strict=True))
        return Batch(packed.text, packed.images, np.stack(labels), queries, keys, seen)


# Losses -------------------------------------------------------------------------------------------


def probe_loss(
    kernel: jax.Array, features: jax.Array, covers: jax.Array, real: jax.Array, seen: Seen
) -> tuple[jax.Array, jax.Array]:
    """How well colour, shape and box of the things can be read off features, linearly.

    Args:
      features: [B, S, N, E].
      covers: [B, S, N, 2], whether each of the two things reaches into each place.
      real: [B, S], whether there is a picture.

    Returns:
      The loss, and the share of boxes' coordinates within one step.
    """
    out = (features @ kernel).reshape(*features.shape[:-1], 2, _OUTPUTS)
    present, out = out[..., 0], out[..., 1:]
    mask = covers & real[..., None, None]
    presence = optax.sigmoid_binary_cross_entropy(present, covers.astype(jnp.float32))
    presence = (presence * real[..., None, None]).sum() / (2 * covers.shape[2] * real.sum())
    cuts = np.cumsum([len(COLOURS), len(SHAPES)])
    colour, shape, box = jnp.split(out, cuts, axis=-1)
    box = box.reshape(*box.shape[:-1], 4, BINS)

    def cross_entropy(logits, labels):
        labels = jnp.broadcast_to(labels[:, :, None], logits.shape[:-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    told = cross_entropy(colour, seen.colour) + cross_entropy(shape, seen.shape)
    told += cross_entropy(box, seen.bins).sum(-1)
    near = (jnp.abs(box.argmax(-1) - seen.bins[:, :, None]) <= 1).mean(-1)
    count = mask.sum()
    return presence + (told * mask).sum() / count / 4, (near * mask).sum() / count


def vision_losses(model, probes, batch: Batch) -> tuple[jax.Array, dict, jax.Array]:
    features = model.visual.features(batch.images)
    visual = model.visual.merger(features)
    B, S, P, _ = features.shape
    covers = batch.seen.covers
    real = batch.images.positions[:, :, 0, 0] >= 0
    quarters = covers.reshape(B, S, P // 4, 4, 2).any(axis=3)
    patch, _ = probe_loss(probes["patch"], features, covers, real, batch.seen)
    token, near = probe_loss(
        probes["token"], visual.reshape(B, S, P // 4, -1), quarters, real, batch.seen
    )
    return patch + token, {"see_patch": patch, "see_token": token, "near": near}, visual


def decode_with_patterns(model, batch: Batch, visual) -> tuple[jax.Array, jax.Array]:
    """The decoder's hidden states, and the loss of each pattern."""
    decoder, text = model.decoder, batch.text
    x = model.embed(text, visual)[:, None]
    angles = decoder._angles(text.positions)[:, None]
    T = x.shape[2]
    segments = text.segments
    visible = (segments[:, :, None] == segments[:, None, :]) & jnp.tril(jnp.ones((T, T), bool))
    hidden_from = jnp.where(visible, 0.0, -1e30)
    graph, stacked = nnx.split(decoder.layers)
    losses = {}

    def attend_to(index, q, k, v):
        B, K, _, _, T, D = q.shape
        logits = jnp.einsum("bhtd,bhsd->bhts", q.reshape(B, K, T, D), k[:, :, 0]) * D**-0.5
        logits += hidden_from[:, None]
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
        total = weights.sum(-1, keepdims=True)
        for i, name in enumerate(PATTERNS):
            if HEADS[name][0] != index:
                continue
            wanted = batch.queries[i][:, :, None] == batch.keys[i][:, None, :]
            wanted &= (batch.queries[i] != 0)[:, :, None] & visible & ~jnp.eye(T, dtype=bool)
            asked = wanted.any(-1)
            head = HEADS[name][1]
            mass = (weights[:, head] * wanted).sum(-1) / total[:, head, :, 0]
            value = jnp.where(asked, -jnp.log(mass + 1e-6), 0.0).sum()
            losses[name] = value / jnp.maximum(asked.sum(), 1)
        return (weights @ v[:, :, 0] / total)[:, :, None, None], None

    for index in range(decoder.config.num_layers):
        layer = nnx.merge(graph, jax.tree.map(lambda leaf: leaf[index], stacked))  # noqa: B023
        x, _ = layer(x, angles, functools.partial(attend_to, index))
    return decoder.norm(x)[:, 0], jnp.stack([losses[name] for name in PATTERNS])


def loss(trained, batch: Batch, pattern_weight, see_weight, *, graph):
    model = nnx.merge(graph, trained["model"])
    see_loss, numbers, visual = vision_losses(model, trained["probes"], batch)
    hidden, patterns = decode_with_patterns(model, batch, visual)
    logprobs = token_logprobs(hidden[:, :-1], model.head(), batch.text.tokens[:, 1:], chunk=1 << 20)
    labels = batch.labels[:, 1:]
    text_loss = -(logprobs * labels).sum() / labels.sum()
    total = text_loss + see_weight * see_loss + pattern_weight * patterns.mean()
    return total, numbers | {"text": text_loss, "patterns": patterns}


def see_only(trained, batch: Batch, *, graph):
    value, numbers, _ = vision_losses(nnx.merge(graph, trained["model"]), trained["probes"], batch)
    return value, numbers


# Training -----------------------------------------------------------------------------------------


def make_update(function, optimizer, mesh):
    def update(trained, opt_state, batch, *weights):
        (_, numbers), grads = jax.value_and_grad(function, has_aux=True)(trained, batch, *weights)
        updates, opt_state = optimizer.update(grads, opt_state, trained)
        return optax.apply_updates(trained, updates), opt_state, numbers

    return jax.jit(update, donate_argnums=(0, 1))


def optimizer_for(rate: float, steps: int) -> optax.GradientTransformation:
    config = sft().optimizer
    config.update(name="muon", learning_rate=rate, warmup_ratio=0.03, final_ratio=0.02)
    config.adam_ratio = 0.5
    return make_optimizer(config, steps)


def main(_):
    folder = pathlib.Path(OUTPUT.value)
    jax.config.update("jax_num_cpu_devices", 2)
    mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1)
    small_tokenizer.write(folder)
    (folder / "config.json").write_text('{"model_type": "qwen2_vl"}')
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = model_config(tokenizer)
    rng = np.random.default_rng(SEED.value)

    begin = time.time()
    pictures = [draw_picture(rng) for _ in range(POOL.value)]
    logging.info("%d pictures drawn in %.0f s", len(pictures), time.time() - begin)

    graph, params = qwen2_vl.create(config, SEED.value, remat=False)
    if START.value:
        graph, params = hf.from_pretrained(START.value, remat=False)
    keys = jax.random.split(jax.random.key(SEED.value + 1))
    width, seeing = config.text.hidden_size, config.vision.embed_dim
    probes = {
        "patch": 0.02 * jax.random.normal(keys[0], (seeing, 2 * _OUTPUTS)),
        "token": 0.02 * jax.random.normal(keys[1], (width, 2 * _OUTPUTS)),
    }
    trained = jax.device_put({"model": params, "probes": probes}, sharding.replicated(mesh))
    logging.info("%d parameters", sum(p.size for p in jax.tree.leaves(trained["model"])))

    def log(step, numbers, begin):
        numbers = jax.device_get(numbers)
        patterns = numbers.pop("patterns", None)
        shown = " ".join(f"{k} {float(v):.3f}" for k, v in numbers.items())
        if patterns is not None:
            shown += " | " + " ".join(
                f"{n} {v:.2f}" for n, v in zip(PATTERNS, patterns, strict=True)
            )
        logging.info("step %d, %.0f s: %s", step, time.time() - begin, shown)

    # First to see.
    if SEE_STEPS.value and not START.value:
        optimizer = optimizer_for(LEARNING_RATE.value, SEE_STEPS.value)
        opt_state = jax.jit(optimizer.init)(trained)
        update = make_update(functools.partial(see_only, graph=graph), optimizer, mesh)
        begin = time.time()
        empty = Text(*(np.zeros((1, 1), np.int32),) * 4)
        where = np.stack(_CORNERS // 14)
        for step in range(SEE_STEPS.value):
            chosen = [pictures[i] for i in rng.integers(len(pictures), size=256)]
            images = Images(
                np.stack([p.patches.patches for p in chosen])[:, None],
                np.broadcast_to(where, (256, 1, 16, 2)).astype(np.int32),
            )
            seen = Seen(*(np.stack([p.seen[i] for p in chosen])[:, None] for i in range(4)))
            placed = sharding.place_rows((images, seen), mesh)
            batch = Batch(empty, placed[0], *[None] * 3, placed[1])
            trained, opt_state, numbers = update(trained, opt_state, batch)
            if step % 100 == 0:
                log(step, numbers, begin)
        log(step, numbers, begin)

    # Then everything.
    optimizer = optimizer_for(LEARNING_RATE.value, STEPS.value)
    opt_state = jax.jit(optimizer.init)(trained)
    update = make_update(functools.partial(loss, graph=graph), optimizer, mesh)
    source = Source(tokenizer, pictures, rng, ROWS.value)
    begin = time.time()
    for step in range(STEPS.value):
        batch = next(source)
        text, images, labels, seen = sharding.place_rows(
            (batch.text, batch.images, batch.labels, batch.seen), mesh
        )
        codes = (batch.queries, batch.keys)
        placed = Batch(text, images, labels, *codes, seen)
        trained, opt_state, numbers = update(trained, opt_state, placed, PATTERN_WEIGHT.value, 0.3)
        if step % 25 == 0:
            log(step, numbers, begin)
        if step % 400 == 399:
            hf.save(folder, trained["model"], config)
    log(step, numbers, begin)

    hf.save(folder, trained["model"], config)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "Qwen2VLImageProcessor",
                "min_pixels": 56 * 56,
                "max_pixels": 56 * 56,
                "patch_size": 14,
                "temporal_patch_size": 2,
                "merge_size": 2,
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
            },
            indent=2,
        )
        + "\n"
    )


if __name__ == "__main__":
    app.run(main)
