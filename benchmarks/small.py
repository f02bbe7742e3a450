"""Time of an SFT step and of greedy generation with the small model, compared with transformers."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator

import jax
import numpy as np
import torch
from flax import nnx
from jax.sharding import Mesh

from benchmarks.reference import torch_inputs, torch_model
from benchmarks.side_by_side import Variant
from configs import sft_tiny, trajectories
from mirg_jax import sharding
from mirg_jax.data.batching import Item, Shapes, collate_prompts
from mirg_jax.data.examples import read_examples
from mirg_jax.data.prompts import Tokenizer
from mirg_jax.models.options import ModelOptions
from mirg_jax.runs import devices
from mirg_jax.runs.loading import Model, load_model
from mirg_jax.runs.settings import Settings, read
from mirg_jax.runs.tokenizer import load_tokenizer
from mirg_jax.runs.train_state import init_state, state_shardings
from mirg_jax.sampling.sampler import SamplingConfig, make_sampler, sample_keys
from mirg_jax.scenes.scene_tasks import write_dataset
from mirg_jax.training import sft
from mirg_jax.training.optimizer import make_optimizer
from mirg_jax.trajectories import build
from mirg_jax.trajectories import settings as trajectory_settings

NEW_TOKENS = 128
PROMPTS = (1, 8, 32, 64)


def _items(
    settings: Settings, tokenizer: Tokenizer, count: int, *, with_response: bool
) -> list[Item]:
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(folder, seed=0, sft=count, rl=0, evaluation=0)
        prepare = settings.preparer(tokenizer, with_response=with_response, image_root=folder)
        made = pathlib.Path(folder) / "trajectories"
        source = str(pathlib.Path(folder) / "sft.json")
        annotator = trajectories.scenes()
        annotator.scenes.seed = 0
        annotation = trajectory_settings.read(annotator)
        build.build(annotation, source=source, image_root=folder, output_dir=made)
        examples, _ = read_examples(made / "grounded.jsonl")
        return [prepare(example) for example in examples]


def _torch_labels(items: list[Item], inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, item in enumerate(items):
        span = slice(item.encoded.prompt_length, len(item.encoded.tokens))
        labels[row, span] = inputs["input_ids"][row, span]
    return labels


def _start(base: str) -> tuple[Settings, Mesh, Model, Tokenizer]:
    settings = read(sft_tiny.get_config())
    mesh = devices.start(settings.devices)
    model = load_model(base, mesh, ModelOptions(remat="none"))
    return settings, mesh, model, load_tokenizer(base)


def sft_step(base: str) -> Iterator[Variant]:
    """A step of the small recipe with AdamW: gradient, clip and update of the same examples.

    Beside it transformers with the whole batch padded to its longest example, and with the
    micro-batches that ours makes.
    """
    settings, mesh, model, tokenizer = _start(base)
    items = _items(settings, tokenizer, settings.batch_size, with_response=True)
    batches = sft.micro_batches(items, settings.data.shapes, settings.micro_batch)
    labels = sum(len(i.encoded.tokens) - i.encoded.prompt_length for i in items)
    adamw = dataclasses.replace(settings.optimizer, name="adamw", learning_rate=1e-4)
    optimizer = make_optimizer(adamw, 1000)
    state = jax.jit(lambda p: init_state(p, optimizer, 0))(
        jax.tree.map(jax.numpy.copy, model.params)
    )
    layout = state_shardings(model.params, optimizer, mesh)
    step = sft.make_step(model.graph, optimizer, mesh, layout, settings.logprob_chunk)
    losses = {}

    def ours():
        nonlocal state
        state, outcome = step(state, nnx.State({}), batches, labels)
        losses.setdefault("mirg_jax", float(outcome.loss))

    by_length = sorted(items, key=lambda item: -len(item.encoded.tokens))
    size = settings.micro_batch
    groups = {
        "transformers": [items],
        "transformers_micro_batches": [by_length[i : i + size] for i in range(0, len(items), size)],
    }
    padded = {"mirg_jax": sum(batch.text.tokens.size for batch in batches)}

    def theirs(name):
        model = torch_model(base)
        adamw = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
        data = [(torch_inputs(group, model, left=False), group) for group in groups[name]]
        data = [(inputs, _torch_labels(group, inputs)[:, 1:].flatten()) for inputs, group in data]
        count = sum(int((labels >= 0).sum()) for _, labels in data)
        padded[name] = sum(inputs["input_ids"].numel() for inputs, _ in data)

        def run():
            adamw.zero_grad()
            total = 0.0
            for inputs, labels in data:
                logits = model(**inputs).logits[:, :-1].flatten(0, 1)
                loss = torch.nn.functional.cross_entropy(
                    logits, labels, ignore_index=-100, reduction="sum"
                )
                (loss / count).backward()
                total += loss.item() / count
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adamw.step()
            losses.setdefault(name, total)

        return run

    yield Variant(
        f"{len(items)} examples",
        {"mirg_jax": ours} | {name: theirs(name) for name in groups},
        {
            "tokens": sum(len(item.encoded.tokens) for item in items),
            "padded_tokens": padded,
            "first_loss": losses,
        },
    )


def generate(base: str) -> Iterator[Variant]:
    """Greedy generation of as many tokens for each prompt, float32, no stop token."""
    settings, mesh, model, tokenizer = _start(base)
    reference = torch_model(base)
    all_items = _items(settings, tokenizer, max(PROMPTS), with_response=False)
    forbidden = np.zeros(model.config.text.vocab_size, bool)
    sampling = SamplingConfig(group=1, max_tokens=NEW_TOKENS, temperature=0.0)
    sample = make_sampler(model.graph, mesh, forbidden, sampling)

    for count in PROMPTS:
        items = all_items[:count]
        longest = max(len(item.encoded.tokens) for item in items)
        rows = sharding.whole_rows(count, mesh)
        batch = collate_prompts(items, Shapes((longest,), (3,), (16,)), rows)
        prompt, images = sharding.place_rows((batch.text, batch.images), mesh)
        keys = sample_keys(jax.random.key(0), jax.numpy.arange(rows), 1)
        inputs = torch_inputs(items, reference, left=True)
        tokens = {}

        def ours(prompt=prompt, images=images, keys=keys, tokens=tokens, count=count):
            rollout = sample(model.params, prompt, images, keys)
            tokens["mirg_jax"] = jax.device_get(rollout.tokens)[:count, 0]

        def theirs(inputs=inputs, tokens=tokens, longest=longest):
            with torch.no_grad():
                out = reference.generate(
                    **inputs,
                    do_sample=False,
                    max_new_tokens=NEW_TOKENS,
                    min_new_tokens=NEW_TOKENS,
                )
            tokens["transformers"] = out[:, longest:].numpy()

        yield Variant(
            f"{count} prompts",
            {"mirg_jax": ours, "transformers": theirs},
            {
                "prompt_tokens": sum(len(item.encoded.tokens) for item in items),
                "new_tokens": count * NEW_TOKENS,
                "equal_tokens": lambda tokens=tokens: float(
                    (tokens["mirg_jax"] == tokens["transformers"]).mean()
                ),
            },
        )


CASES = {"sft_step": sft_step, "generate": generate}
