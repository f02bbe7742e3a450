"""The small path beside transformers and torch: one SFT step, and greedy generation."""

import functools
import pathlib
import tempfile

import jax
import numpy as np
import torch
from flax import nnx
from transformers import Qwen2VLForConditionalGeneration

from configs import sft_tiny
from mirg_jax import sharding
from mirg_jax.data.batching import Item, Shapes, collate_prompts
from mirg_jax.data.examples import read_examples
from mirg_jax.data.scene_tasks import write_dataset
from mirg_jax.sampling.sampler import SamplingConfig, sample, sample_keys
from mirg_jax.training import setup, sft
from mirg_jax.training.checkpoint import load_model
from mirg_jax.training.state import apply_gradients, init_state, make_optimizer

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)[:, None]
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)[:, None]


def _items(config, tokenizer, count: int, *, with_response: bool) -> list[Item]:
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(folder, seed=0, sft=count, rl=0, evaluation=0)
        config.data.image_root = folder
        prepare = setup.make_preparer(config, tokenizer, with_response=with_response)
        examples, _ = read_examples(pathlib.Path(folder) / "sft.jsonl")
        return [prepare(example) for example in examples]


def _torch_inputs(items: list[Item], model, *, left: bool) -> dict[str, torch.Tensor]:
    """What transformers' processor would give for the same prompts and images."""
    longest = max(len(item.encoded.tokens) for item in items)
    ids = np.zeros((len(items), longest), np.int64)
    held = np.zeros_like(ids)
    for row, item in enumerate(items):
        tokens = item.encoded.tokens
        span = slice(longest - len(tokens), None) if left else slice(len(tokens))
        ids[row, span], held[row, span] = tokens, 1
    images = [image for item in items for image in item.images]
    pixels = np.concatenate([image.patches for image in images]).reshape(-1, 3, 196) / 255
    pixels = np.repeat(((pixels - MEAN) / STD)[:, :, None], 2, axis=2).reshape(-1, 1176)
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(held),
        "pixel_values": torch.tensor(pixels, dtype=torch.float32),
        "image_grid_thw": torch.tensor([[1, *image.grid] for image in images]),
        "mm_token_type_ids": torch.tensor((ids == model.config.image_token_id).astype(np.int64)),
    }


def _set_up(base: str):
    config = sft_tiny.get_config()
    config.model.path = base
    config.mesh.update(data=-1, fsdp=1)
    mesh = setup.use_devices(config)
    model = load_model(base, mesh, remat=False)
    reference = Qwen2VLForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    return config, mesh, model, setup.load_tokenizer(base), reference


def sft_step(base: str, batch_size: int = 32):
    """Gradient and AdamW update on the same padded batch, one example a row, float32."""
    config, mesh, model, tokenizer, reference = _set_up(base)
    items = _items(config, tokenizer, batch_size, with_response=True)
    longest = max(len(item.encoded.tokens) for item in items)
    batch = sharding.place_rows(
        collate_prompts(items, Shapes((longest,), (3,), (16,)), batch_size), mesh
    )
    config.optimizer.name, config.optimizer.learning_rate = "adamw", 1e-4
    optimizer = make_optimizer(config.optimizer, 1000)
    state = jax.jit(lambda p: init_state(p, optimizer, 0))(model.params)
    count = np.float32(batch.labels[:, 1:].sum())

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch):
        loss = functools.partial(sft.loss, graph=model.graph, chunk=8192)
        value, grads = jax.value_and_grad(loss)(state.params, nnx.State({}), batch, count)
        return apply_gradients(state, grads, optimizer)[0], value

    losses = {}

    def ours():
        nonlocal state
        state, value = step(state, batch)
        losses.setdefault("mirg_jax", float(value))

    inputs = _torch_inputs(items, reference, left=False)
    labels = torch.tensor(np.where(np.asarray(batch.labels), np.asarray(batch.text.tokens), -100))
    labels = labels.to(torch.int64)
    adamw = torch.optim.AdamW(reference.parameters(), lr=1e-4, weight_decay=0.0)

    def theirs():
        logits = reference(**inputs).logits
        value = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        )
        adamw.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        adamw.step()
        losses.setdefault("transformers", value.item())

    facts = {
        "rows": batch_size,
        "tokens_a_row": longest,
        "first_loss": losses,
    }
    return {"mirg_jax": ours, "transformers": theirs}, facts


def generate(base: str, batch_size: int = 32, new_tokens: int = 128):
    """Greedy generation of `new_tokens` for each of the same prompts, float32, no stop token."""
    config, mesh, model, tokenizer, reference = _set_up(base)
    items = _items(config, tokenizer, batch_size, with_response=False)
    longest = max(len(item.encoded.tokens) for item in items)
    batch = collate_prompts(items, Shapes((longest,), (3,), (16,)), batch_size)
    prompt, images = sharding.place_rows((batch.text, batch.images), mesh)
    sampling = SamplingConfig(group=1, max_tokens=new_tokens, temperature=0.0)
    keys = sample_keys(jax.random.key(0), jax.numpy.arange(batch_size), 1)
    forbidden = np.zeros(model.config.text.vocab_size, bool)
    run = jax.jit(
        functools.partial(sample, model.graph, keys=keys, forbidden=forbidden, config=sampling)
    )
    tokens = {}

    def ours():
        tokens["mirg_jax"] = jax.device_get(run(model.params, prompt, images).tokens)[:, 0]

    inputs = _torch_inputs(items, reference, left=True)
    reference.generation_config.eos_token_id = None

    def theirs():
        with torch.no_grad():
            out = reference.generate(
                **inputs, do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens
            )
        tokens["transformers"] = out[:, longest:].numpy()

    def agreement():
        return float((tokens["mirg_jax"] == tokens["transformers"]).mean())

    facts = {
        "prompts": batch_size,
        "prompt_tokens": int(sum(len(item.encoded.tokens) for item in items)),
        "new_tokens": batch_size * new_tokens,
        "equal_tokens": agreement,
    }
    return {"mirg_jax": ours, "transformers": theirs}, facts


CASES = {"sft_step": sft_step, "generate": generate}
