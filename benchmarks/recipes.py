"""Time, memory and MFU of a recipe's step at its real size, on the devices at hand.

The weights are random, which costs as much as trained ones. SFT is set beside transformers with the
same sizes, precision and rematerialisation: PEFT's adapters for LoRA, otherwise float32 weights
under bfloat16 autocast.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import transformers
from flax import nnx
from jax.sharding import Mesh

from benchmarks.group import Size, make_prompt, with_completion
from benchmarks.reference import torch_inputs
from benchmarks.side_by_side import Phases, Variant
from configs import grpo as grpo_recipes
from configs import sft as sft_recipes
from mirg_jax import sharding
from mirg_jax.data.batching import Item, collate_prompts
from mirg_jax.models import flops, qwen2_vl
from mirg_jax.models.config import ModelConfig
from mirg_jax.models.sizes import PUBLISHED
from mirg_jax.planning.plans import measure
from mirg_jax.planning.programs import programs
from mirg_jax.runs import devices, engines
from mirg_jax.runs.loading import Model
from mirg_jax.runs.settings import Settings, read
from mirg_jax.runs.train_state import TrainState
from mirg_jax.sampling.sampler import make_sampler, sample_keys
from mirg_jax.sampling.weights import make_weights
from mirg_jax.sharding.memory import with_resident
from mirg_jax.training import sft
from mirg_jax.training.grpo_programs import (
    Experience,
    PolicyOptions,
    Totals,
    make_gradients,
    reference_values,
)
from mirg_jax.training.optimizer import make_apply
from mirg_jax.training.rollouts import sampling_config, see
from mirg_jax.training.speed import sft_operations
from mirg_jax.training.start import first_state, trainable

# Two examples fill a row of 6,144 tokens; four images of 616 × 616 pixels each.
SIZE = Size(prompts=4, group=1, length=1024, images=4, side=44)


class Recipe(NamedTuple):
    """A recipe's model with random weights, ready for steps."""

    settings: Settings
    mesh: Mesh
    model: Model
    graph: nnx.GraphDef  # with adapters, if there are any
    frozen: nnx.State
    state: TrainState
    layout: TrainState
    optimizer: Any

    @classmethod
    def open(cls, settings: Settings, config: ModelConfig) -> "Recipe":
        """Creates the arrays on the devices."""
        mesh = devices.start(settings.devices)
        options = engines.options(settings.model, config, mesh)
        graph, shapes = qwen2_vl.abstract(config, options)
        where = sharding.parameter_shardings(shapes, mesh)
        make = jax.jit(lambda: qwen2_vl.create(config, 0, options)[1], out_shardings=where)
        model = Model(config, graph, make(), None)
        graph, params, frozen = trainable(model, settings, mesh)
        optimizer, layout, state = first_state(params, settings, mesh)
        return cls(settings, mesh, model, graph, frozen, state, layout, optimizer)


def _examples(config: ModelConfig, size: Size) -> list[Item]:
    """Prompts with responses."""
    rng = np.random.default_rng(0)
    prompts = [make_prompt(rng, config, size) for _ in range(size.prompts)]
    responses = rng.integers(0, 600, (size.prompts, size.length)).astype(np.int32)
    return [with_completion(*pair, config) for pair in zip(prompts, responses, strict=True)]


def _memory() -> dict[str, int]:
    """Peak bytes of a device so far, by allocator; empty on a CPU."""
    held = jax.local_devices()[0].memory_stats() or {}
    found = {"jax": held["peak_bytes_in_use"]} if "peak_bytes_in_use" in held else {}
    if torch.cuda.is_available():
        found["torch"] = torch.cuda.max_memory_allocated()
    return found


def _planned(settings: Settings, size: Size, tokens: int) -> dict[str, int]:
    """Bytes of each program by the plan, for the sizes of the case."""
    lengths = next(n for n in settings.data.shapes.lengths if n >= tokens)
    slots = next(n for n in settings.data.shapes.slots if n >= size.images)
    shapes = dataclasses.replace(settings.data.shapes, lengths=(lengths,), slots=(slots,))
    data = dataclasses.replace(settings.data, shapes=shapes)
    planned = programs(dataclasses.replace(settings, data=data), jax.devices())
    return {program.name: measure(program).total for program in planned}


def sft_work(recipe: Recipe, items: list[Item]) -> float:
    """Operations of a step's forward and backward passes."""
    lengths = [len(item.encoded.tokens) for item in items]
    patches = [len(image.patches) for item in items for image in item.images]
    return sft_operations(recipe.settings, flops.forward(recipe.model.config, lengths, patches))


def _torch_model(recipe: Recipe, device: str):
    """transformers' model with random weights, and the parameters that are trained."""
    settings, config = recipe.settings, recipe.model.config
    raw = config.to_hf()
    theirs = transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)
    dtype = torch.bfloat16 if settings.lora else torch.float32
    with torch.device(device):
        model = transformers.AutoModelForImageTextToText.from_config(
            theirs, dtype=dtype, attn_implementation="sdpa"
        )
    if settings.lora:
        import peft

        lora = peft.LoraConfig(
            r=settings.lora.rank,
            lora_alpha=settings.lora.alpha,
            target_modules=r".*language_model.*\.(q|k|v|o|gate|up|down)_proj",
        )
        model = peft.get_peft_model(model, lora)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("visual" not in name)
    model.gradient_checkpointing_enable({"use_reentrant": False})  # 5.10 has no newer name
    model.enable_input_require_grads()
    model.train()
    return model, [p for p in model.parameters() if p.requires_grad]


def _torch_step(recipe: Recipe, items: list[Item], losses: dict) -> Callable[[], None]:
    """A step of transformers' model, one example a pass."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, trained = _torch_model(recipe, device)
    adamw = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0, fused=device == "cuda")
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    data = []
    for item in items:
        inputs = torch_inputs([item], inner, left=False)
        labels = torch.full_like(inputs["input_ids"], -100)
        span = slice(item.encoded.prompt_length, None)
        labels[:, span] = inputs["input_ids"][:, span]
        data.append({name: x.to(device) for name, x in (inputs | {"labels": labels}).items()})

    def step():
        adamw.zero_grad()
        total = 0.0
        for inputs in data:
            with torch.autocast(device, torch.bfloat16):
                loss = model(**inputs).loss / len(data)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adamw.step()
        losses.setdefault("transformers", total.item())

    return step


def sft_recipe(recipe: Recipe, size: Size = SIZE) -> Iterator[Variant]:
    """SFT steps of two rows a device, in micro-batches of the recipe's rows."""
    settings, losses = recipe.settings, {}
    items = _examples(recipe.model.config, size)
    batches = sft.micro_batches(items, settings.data.shapes, settings.micro_batch)
    labels = float(size.prompts * size.length)
    step = sft.make_step(
        recipe.graph, recipe.optimizer, recipe.mesh, recipe.layout, settings.logprob_chunk
    )
    state = recipe.state

    def ours():
        nonlocal state
        state, outcome = step(state, recipe.frozen, batches, labels)
        losses.setdefault("mirg_jax", float(outcome.loss))

    ways = {"mirg_jax": ours}

    def theirs():
        # Created at its first step, when our program has been compiled and run.
        if "transformers" not in made:
            made["transformers"] = _torch_step(recipe, items, losses)
        made["transformers"]()

    made = {}
    ways["transformers"] = theirs
    yield Variant(
        f"{size.prompts} examples of {len(items[0].encoded.tokens)} tokens",
        ways,
        {
            "first_loss": losses,
            "padded_tokens": sum(batch.text.tokens.size for batch in batches),
            "peak_bytes": _memory,
            "planned_bytes": lambda: _planned(
                settings, size._replace(images=2 * size.images), batches[0].text.tokens.shape[1]
            ),
        },
        counted=dict.fromkeys(ways, sft_work(recipe, items)),
        units={"tokens": sum(len(item.encoded.tokens) for item in items)},
    )


class _Grpo:
    """The programs of a GRPO step: visual tokens, rollout, reference, update."""

    def __init__(self, recipe: Recipe, size: Size):
        settings, mesh, model = recipe.settings, recipe.mesh, recipe.model
        self.recipe, self.state = recipe, recipe.state
        grpo = dataclasses.replace(settings.grpo, max_tokens=size.length)
        forbidden = np.zeros(model.config.text.vocab_size, bool)
        policy = PolicyOptions(recipe.graph, forbidden, grpo, settings.logprob_chunk)
        rng = np.random.default_rng(0)
        items = [make_prompt(rng, model.config, size) for _ in range(size.prompts)]
        self.prompt_tokens = len(items[0].encoded.tokens)
        batch = collate_prompts(items, settings.data.shapes, size.prompts)
        self.text, self.images = sharding.place_rows((batch.text, batch.images), mesh)
        self.parts = size.prompts // settings.micro_batch
        self.advantages = sharding.place_rows(
            rng.standard_normal((size.prompts, size.group)).astype(np.float32), mesh
        )
        totals = Totals(
            np.float32(size.prompts * size.group),
            np.float32(size.prompts * size.group * size.length),
        )
        self.totals = sharding.place_everywhere(totals, mesh)
        self.keys = sample_keys(jax.random.key(0), jax.numpy.arange(size.prompts), size.group)

        compute = settings.model.precision.compute
        everything = nnx.merge_state(recipe.state.params, recipe.frozen)
        dtypes = qwen2_vl.computed_dtypes(model.params, compute)
        copy = jax.jit(lambda p: jax.tree.map(lambda x, d: jax.numpy.array(x, d), p, dtypes))
        self.reference = recipe.frozen if settings.lora else copy(model.params)
        self.weights_of = make_weights(everything, compute, mesh)
        config = sampling_config(grpo, sharding.row_parts(mesh), stops=())
        self._sample = with_resident(make_sampler(recipe.graph, mesh, forbidden, config))
        self._see = jax.jit(functools.partial(see, graph=recipe.graph))
        options = policy._replace(graph=model.graph)
        self._refer = with_resident(functools.partial(reference_values, options=options))
        self._gradients = make_gradients(recipe.layout, policy)
        self._apply = make_apply(recipe.optimizer, recipe.layout)

    def rollout(self):
        """Encodes the images a micro-batch at a time, and samples all groups."""
        mesh = self.recipe.mesh
        params = nnx.merge_state(self.state.params, self.recipe.frozen)
        images = sharding.split_rows(self.images, self.parts, mesh)
        visual = sharding.join_rows([self._see(params, part) for part in images], mesh)
        weights = self.weights_of(params)
        unused = None if weights is params else params
        resident = self.state.opt_state, self.reference, unused
        sampled = self._sample(resident, weights, self.text, visual, self.keys)
        return visual, jax.block_until_ready(sampled)

    def refer(self, visual, sampled) -> list[Experience]:
        """Computes the reference policy's log-probs, a micro-batch at a time."""
        whole = Experience(self.text, visual, sampled, self.advantages, None)
        parts = sharding.split_rows(whole, self.parts, self.recipe.mesh)
        resident = self.state.params, self.state.opt_state
        found = [self._refer(resident, self.reference, *part[:3]) for part in parts]
        jax.block_until_ready(found)
        return [part._replace(reference=v) for part, v in zip(parts, found, strict=True)]

    def update(self, experiences: list[Experience]) -> dict[str, float]:
        """Accumulates the gradients and updates the policy; returns the step's statistics."""
        given = self.state.params, self.recipe.frozen
        calls = [(*given, experience, self.totals, None) for experience in experiences]
        summed = self._gradients.sum(self.state.opt_state, calls, len(calls))
        (loss, statistics), grads = summed
        self.state, _ = self._apply(self.state, grads, loss)
        return jax.device_get(statistics) | {"loss": float(loss)}


def grpo_work(recipe: Recipe, size: Size, prompt: int) -> dict[str, float]:
    """Operations of each phase of a GRPO step; the frozen tower is run once."""
    settings, config = recipe.settings, recipe.model.config
    B, G, L = size[:3]
    first = flops.decoder(config, prompt, flops.causal(prompt), 0)
    pairs = G * (L * prompt + flops.causal(L))
    forward = B * (first + flops.decoder(config, G * L, pairs, G * L))
    tower = flops.tower(config, B * size.images, size.side**2)
    backward = 1.0 if settings.lora else 2.0
    return {
        "rollout": tower + forward,
        "reference": forward,
        "update": (1 + backward) * forward,
    }


def grpo_recipe(recipe: Recipe, size: Size) -> Iterator[Variant]:
    """GRPO steps: every completion has the largest length, since no token ends it.

    With four micro-batches of prompts, where a recipe has more, since all of them take as long.
    """
    run = _Grpo(recipe, size)
    work = grpo_work(recipe, size, run.prompt_tokens)
    phases = Phases({name: {"mirg_jax": value} for name, value in work.items()})
    statistics = []

    def step():
        with jax.set_mesh(recipe.mesh):
            with phases("rollout", "mirg_jax"):
                visual, sampled = run.rollout()
            with phases("reference", "mirg_jax"):
                experiences = run.refer(visual, sampled)
            with phases("update", "mirg_jax"):
                statistics.append(run.update(experiences))

    yield Variant(
        str(size),
        {"mirg_jax": step},
        {
            "prompt_tokens": run.prompt_tokens,
            "first_step": lambda: {name: float(v) for name, v in statistics[0].items()},
            "peak_bytes": _memory,
            "planned_bytes": lambda: _planned(recipe.settings, size, run.prompt_tokens),
        },
        counted={"mirg_jax": sum(work.values())},
        phases=phases,
        units={"new_tokens": size.prompts * size.group * size.length},
    )


def _sft_case(argument: str) -> Iterator[Variant]:
    settings = read(sft_recipes.get_config(argument))
    return sft_recipe(Recipe.open(settings, PUBLISHED[settings.model.path]))


def _grpo_case(argument: str) -> Iterator[Variant]:
    config = grpo_recipes.get_config(argument)
    config.batch_size = config.sampling.prompts = SIZE.prompts * config.prompts_per_micro_batch
    settings = read(config)
    size = Size(settings.batch_size, settings.grpo.group, settings.grpo.max_tokens, *SIZE[3:])
    return grpo_recipe(Recipe.open(settings, PUBLISHED[settings.model.path]), size)


CASES = {"sft_recipe": _sft_case, "grpo_recipe": _grpo_case}
