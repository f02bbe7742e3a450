"""Trains the demo's small base model from random weights on a CPU.

    python scripts/make_small_base.py --output_dir=assets/small_base
    python scripts/make_small_base.py --output_dir=assets/small_base_qwen2_5_vl --family=qwen2_5_vl
    python scripts/make_small_base.py --output_dir=assets/small_base_qwen3_vl --family=qwen3_vl

The model is trained for three abilities of a pretrained vision-language model: recognising objects
in single pictures (with a dense loss on the vision tower), answering in the trajectories' format,
and looking up objects in lists (with a loss on a few attention heads). Its training data has no
questions about several pictures. The result is an ordinary model of its family in Hugging Face's
format.
"""

import functools
import json
import pathlib

import jax
import numpy as np
import optax
from absl import flags
from tqdm import tqdm
from transformers import AutoTokenizer

from mirg_jax import cli, defaults, sharding
from mirg_jax.models import qwen2_vl
from mirg_jax.models.config import ARCHITECTURES, ModelConfig, TextConfig, VisionConfig
from mirg_jax.models.options import ModelOptions
from mirg_jax.models.vision import pixel_statistics
from mirg_jax.scenes import small_tokenizer
from mirg_jax.scenes.lessons import batches, losses
from mirg_jax.scenes.lessons.patterns import PATTERNS
from mirg_jax.scenes.lessons.pictures import PATCHES, POSITIONS, Seen, draw_picture
from mirg_jax.training.optimizer import make_optimizer
from mirg_jax.types import Images
from mirg_jax.weights import hf

_OUTPUT = flags.DEFINE_string(
    "output_dir", None, "Folder where the model is written.", required=True
)
_FAMILY = flags.DEFINE_enum(
    "family", "qwen2_vl", list(ARCHITECTURES), "Model family, which determines the vision tower."
)
_SEE_STEPS = flags.DEFINE_integer(
    "see_steps",
    200,
    "Number of training steps of the vision tower alone, before --steps.",
    lower_bound=1,
)
_STEPS = flags.DEFINE_integer(
    "steps", 900, "Number of training steps of the whole model.", lower_bound=1
)
_ROWS = flags.DEFINE_integer("rows", 24, "Number of token rows per step.", lower_bound=1)
_POOL = flags.DEFINE_integer("pool", 12000, "Number of different training pictures.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 1e-2, "Peak learning rate.")
_PATTERN_WEIGHT = flags.DEFINE_float(
    "pattern_weight", 0.2, "Weight of the loss on attention heads."
)
_SEED = flags.DEFINE_integer("seed", 0, "Random seed.", lower_bound=0)


TOWERS = {
    "qwen2_vl": VisionConfig(depth=2, embed_dim=96, num_heads=4, mlp_ratio=4, out_dim=128),
    # A picture has four windows of one visual token each.
    "qwen2_5_vl": VisionConfig(
        depth=3, embed_dim=96, num_heads=4, mlp_dim=256, out_dim=128, window_size=28,
        full_blocks=(1, 2),
    ),
    # A picture has as many patches as the grid of positions has places.
    "qwen3_vl": VisionConfig(
        depth=3, embed_dim=96, num_heads=4, mlp_dim=256, out_dim=128, patch_size=16,
        position_side=4, deepstack=(0, 1),
    ),
}  # fmt: skip
# What is other than in the first family's decoder.
DECODERS = {"qwen3_vl": {"qkv_bias": False, "qk_norm": True, "mrope_interleaved": True}}


def model_config(tokenizer, family: str) -> ModelConfig:
    """Returns the configuration of a model with 1.3 to 1.9 million parameters."""

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
            **DECODERS.get(family, {}),
        ),
        vision=TOWERS[family],
        image_token_id=token("image_pad"),
        video_token_id=token("video_pad"),
        vision_start_token_id=token("vision_start"),
        vision_end_token_id=token("vision_end"),
        bos_token_id=token("endoftext"),
        eos_token_id=token("im_end"),
    )


def write_processor_config(folder: pathlib.Path, vision: VisionConfig) -> None:
    """Writes preprocessor_config.json, so that transformers resizes images to the model's size."""
    mean, std = pixel_statistics(vision)
    pixels = PATCHES * vision.patch_size**2
    config = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": pixels,
        "max_pixels": pixels,
        "patch_size": vision.patch_size,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [float(str(value)) for value in mean],
        "image_std": [float(str(value)) for value in std],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config, indent=2) + "\n")


def picture_batches(pictures, seed: int, steps: int, size: int = 256):
    """Yields batches of pictures with their labels, for training the vision tower."""
    for step in range(steps):
        rng = np.random.default_rng([seed, step])
        chosen = [pictures[i] for i in rng.integers(len(pictures), size=size)]
        patches = np.stack([picture.patches.patches for picture in chosen])[:, None]
        where = np.broadcast_to(POSITIONS, (size, 1, PATCHES, 2))
        seen = (np.stack([picture.seen[i] for picture in chosen])[:, None] for i in range(4))
        yield Images(patches, where), Seen(*seen)


def train(function, trained, source, steps: int, rate: float, mesh, name: str):
    """Minimises `function(trained, batch) -> (loss, numbers)` and prints `numbers`, the metrics."""
    config = defaults.sft().optimizer
    config.update(name="muon", learning_rate=rate, warmup_ratio=0.03, final_ratio=0.02)
    config.adam_ratio = 0.5
    optimizer = make_optimizer(config, steps)
    # Where results lie is stated, so that the second step is the first one's program.
    whole = sharding.replicated(mesh)
    opt_state = jax.jit(optimizer.init, out_shardings=whole)(trained)

    @functools.partial(jax.jit, donate_argnums=(0, 1), out_shardings=whole)
    def update(trained, opt_state, batch):
        (_, numbers), grads = jax.value_and_grad(function, has_aux=True)(trained, batch)
        updates, opt_state = optimizer.update(grads, opt_state, trained)
        return optax.apply_updates(trained, updates), opt_state, numbers

    for step, batch in enumerate(tqdm(source, total=steps, desc=name, mininterval=10)):
        trained, opt_state, numbers = update(trained, opt_state, sharding.place_rows(batch, mesh))
        if step % 100 == 0 or step == steps - 1:
            numbers = jax.device_get(numbers)
            patterns = numbers.pop("patterns", ())
            told = [f"{key} {float(value):.3f}" for key, value in numbers.items()]
            told += [f"{key} {float(v):.2f}" for key, v in zip(PATTERNS, patterns, strict=False)]
            tqdm.write(f"{name} step {step}: {', '.join(told)}")
    return trained


def main(_):
    folder, seed = cli.output_folder(_OUTPUT), _SEED.value
    jax.config.update("jax_num_cpu_devices", 2)
    mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1)
    small_tokenizer.write(folder)
    (folder / "config.json").write_text('{"model_type": "qwen2_vl"}')  # overwritten by `hf.save`
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = model_config(tokenizer, _FAMILY.value)
    rng = np.random.default_rng(seed)
    patch = config.vision.patch_size
    pictures = [draw_picture(rng, patch) for _ in tqdm(range(_POOL.value), desc="draw")]

    graph, params = qwen2_vl.create(config, seed, ModelOptions(remat="none"))
    keys = jax.random.split(jax.random.key(seed + 1))
    widths = {"patch": config.vision.embed_dim, "token": config.vision.token_dim}
    probes = {
        name: 0.02 * jax.random.normal(key, (width, losses.PROBE_OUTPUTS))
        for key, (name, width) in zip(keys, widths.items(), strict=True)
    }
    trained = jax.device_put({"model": params, "probes": probes}, sharding.replicated(mesh))

    def see_alone(trained, batch):
        loss, (numbers, _) = losses.see(trained, *batch, graph=graph)
        return loss, numbers

    def everything(trained, batch):
        return losses.everything(trained, batch, _PATTERN_WEIGHT.value, graph=graph)

    source = picture_batches(pictures, seed, _SEE_STEPS.value)
    trained = train(see_alone, trained, source, _SEE_STEPS.value, _LEARNING_RATE.value, mesh, "see")
    source = batches.batches(tokenizer, pictures, seed=seed, rows=_ROWS.value, steps=_STEPS.value)
    trained = train(everything, trained, source, _STEPS.value, _LEARNING_RATE.value, mesh, "all")
    hf.save(folder, trained["model"], config)
    write_processor_config(folder, config.vision)


if __name__ == "__main__":
    cli.run(main)
