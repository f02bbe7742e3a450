"""GRPO's sampling: places prompts, encodes images if the tower is frozen, samples completions."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mirg_jax import sharding
from mirg_jax.data.batching import ArraySizes, PackedBatch
from mirg_jax.data.examples import Example
from mirg_jax.models import int8
from mirg_jax.runs.settings import GrpoSettings
from mirg_jax.runs.train_state import TrainState
from mirg_jax.sampling.sampler import SamplingConfig, make_sampler, sample_keys
from mirg_jax.sampling.tokens import stop_ids
from mirg_jax.sampling.weights import make_weights
from mirg_jax.sharding.memory import with_resident
from mirg_jax.training.loop import Part, StepBatches
from mirg_jax.training.start import TrainingRun
from mirg_jax.types import Images, Rollout, Text


class Facts(NamedTuple):
    """What the host needs to know of sampled groups, of all processes."""

    numbers: Int[Array, " B"]  # of the prompts, in the step's order
    lengths: Int[Array, "B G"]
    cut: Bool[Array, "B G"]  # completions that were ended by the limit and by no stop token
    logprobs: Float[Array, "B G"]  # sums over the completions' tokens


class Sampled(NamedTuple):
    """The prompts and completions of one call of the sampler, sharded by rows."""

    examples: list[Example]  # of this process's rows
    prompt: Text
    images: Images | Float[Array, "B V W"]  # visual tokens if the vision tower is frozen
    rollout: Rollout
    sizes: ArraySizes  # of the prompts' arrays
    facts: Facts  # replicated


def divide(items: Sequence[Any], size: int) -> list[list[list[int]]]:
    """Divides a step's prompts into calls of the sampler with `size` rows, one prompt per row."""
    return [[[i] for i in range(at, at + size)] for at in range(0, len(items), size)]


def sampling_config(
    grpo: GrpoSettings, sampling_parts: int, stops: tuple[int, ...]
) -> SamplingConfig:
    """Returns the sampling options of one group of devices.

    Args:
      grpo: the GRPO settings.
      sampling_parts: number of device groups that sample separately.
      stops: tokens that end a completion.
    """
    return SamplingConfig(
        group=grpo.group,
        slots=grpo.slots // sampling_parts,
        max_tokens=grpo.max_tokens,
        temperature=grpo.temperature,
        top_p=grpo.top_p,
        stop_tokens=stops,
    )


def see(params: nnx.State, images: Images, *, graph: nnx.GraphDef) -> Float[Array, "B V W"]:
    """Computes the visual tokens of images."""
    return nnx.merge(graph, params).see(images)


def measure(rollout: Rollout, numbers: Int[Array, " B"], *, stops: tuple[int, ...]) -> Facts:
    """Returns the facts about completions.

    Args:
      rollout: the completions, as long as they may be.
      numbers: of their prompts, in the step's order.
      stops: tokens that end a completion.
    """
    full, last = rollout.mask[..., -1], rollout.tokens[..., -1:]
    cut = full & ~(last == jnp.array(stops)).any(-1)
    logprobs = jnp.where(rollout.mask, rollout.logprobs, 0.0).sum(-1)
    return Facts(numbers, rollout.mask.sum(-1), cut, logprobs)


def leave_out(rollout: Rollout, completions: Bool[Array, "B G"]) -> Rollout:
    """Masks all tokens of some completions, so that they count for nothing in the loss."""
    return rollout._replace(mask=rollout.mask & ~completions[..., None])


class Rollouts:
    """Samples completions of a step's prompts with the current policy."""

    def __init__(self, run: TrainingRun, forbidden: Bool[np.ndarray, " vocab"], resident: Any):
        """Creates the sampler.

        Args:
          run: the run.
          forbidden: tokens that are never sampled.
          resident: arrays on the devices besides the training state and the frozen parameters.
        """
        settings = run.settings
        self._run, self._resident, self._group = run, resident, settings.grpo.group
        self._micro_batches = settings.sampled_prompts // settings.micro_batch
        parts = sharding.row_parts(run.sampling_mesh)
        stops = stop_ids(run.tokenizer, run.model.end_tokens)
        config = sampling_config(settings.grpo, parts, stops)
        graph, kinds = run.graph, None
        params = nnx.merge_state(run.state.params, run.frozen)
        if settings.grpo.int8_sampling:
            graph, kinds = int8.attach(graph, params)
        self._sample = with_resident(make_sampler(graph, run.sampling_mesh, forbidden, config))
        self._weights_of = make_weights(
            params, settings.model.precision.compute, run.sampling_mesh, kinds
        )
        rows, replicated = sharding.by_rows(run.mesh), sharding.replicated(run.mesh)
        self._prepare = jax.jit(self._with_keys, out_shardings=sharding.by_rows(run.sampling_mesh))
        self._take_back = jax.jit(
            lambda rollout, numbers: (rollout, measure(rollout, numbers, stops=stops)),
            out_shardings=(rows, replicated),
        )
        self._see = None
        if settings.tower_is_frozen:
            self._see = jax.jit(functools.partial(see, graph=run.graph), out_shardings=rows)

    def _with_keys(self, key, step, numbers, text, images):
        """Returns what the sampler takes: prompts, images, and the completions' random keys."""
        step_key = jax.random.fold_in(jax.random.wrap_key_data(key), step)
        return text, images, sample_keys(step_key, numbers, self._group)

    def _prompt_numbers(self, call: int, count: int) -> Int[np.ndarray, " B"]:
        """Returns the indices of a call's prompts in the step's global order, for the random keys.

        Share i of n has the prompts i, i + n, i + 2n, …

        Args:
          call: number of the call, over all rounds of the step.
          count: number of its prompts in this share.
        """
        share = self._run.share
        numbers = np.arange(call * count, (call + 1) * count, dtype=np.int32)
        return share.index + share.count * numbers

    def sample(self, state: TrainState, batches: StepBatches) -> Iterator[Sampled]:
        """Yields the samples of each part while the devices already sample the next one."""
        run = self._run
        params, weights, resident = run.for_sampling(state, self._weights_of, self._resident)
        step = sharding.place_everywhere(np.int32(batches.step), run.mesh)

        def draw(call: int, part: Part) -> Sampled:
            text, images = self._place(params, part.batch)
            before = batches.round * len(batches.parts)
            numbers = self._prompt_numbers(before + call, len(part.batch.text.tokens))
            numbers = sharding.place_rows(numbers, run.mesh)
            prompts = self._prepare(state.key, step, numbers, text, images)
            with jax.set_mesh(run.sampling_mesh):
                rollout = self._sample(resident, weights, *prompts)
            rollout, facts = self._take_back(rollout, numbers)
            return Sampled(part.examples, text, images, rollout, part.sizes, facts)

        drawn = draw(0, batches.parts[0])
        for call, part in enumerate(batches.parts[1:], start=1):
            jax.block_until_ready((drawn.rollout, drawn.facts))
            before, drawn = drawn, draw(call, part)
            yield before
        yield drawn

    def _place(
        self, params: nnx.State, batch: PackedBatch
    ) -> tuple[Text, Images | Float[Array, "B V W"]]:
        """Places a batch's prompts on the training mesh; encodes images if the tower is frozen."""
        mesh = self._run.mesh
        text, images = sharding.place_rows((batch.text, batch.images), mesh)
        if self._see is None:
            return text, images
        parts = sharding.split_rows(images, self._micro_batches, mesh)
        return text, sharding.join_rows([self._see(params, part) for part in parts], mesh)
