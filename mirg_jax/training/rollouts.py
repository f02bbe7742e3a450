"""GRPO's sampling: prompts are placed, frozen images encoded, completions drawn, call by call."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from mirg_jax import sharding
from mirg_jax.data.batching import PackedBatch
from mirg_jax.errors import ConfigError
from mirg_jax.runs.train_state import TrainState
from mirg_jax.sampling.sampler import SamplingConfig, make_sampler, sample_keys
from mirg_jax.sampling.weights import make_weights
from mirg_jax.sharding.memory import with_resident
from mirg_jax.training import setup
from mirg_jax.types import Images, Rollout, Text


class Sampled(NamedTuple):
    """The prompts of one call of the sampler and their completions, divided over the mesh."""

    prompt: Text
    images: Images | Float[Array, "B V M"]  # where the tower is frozen, their visual tokens
    rollout: Rollout
    lengths: Int[Array, "B G"]  # whole on every device


def prompts_a_call(config: ConfigDict) -> int:
    """Prompts that are sampled at a time, on all devices together."""
    return config.sampling.prompts or config.prompts_per_micro_batch


def sampling_config(config: ConfigDict, parts: int, stops: tuple[int, ...]) -> SamplingConfig:
    """How a device of `parts` samples.

    Raises:
      ConfigError: for numbers of prompts that can't be divided.
    """
    prompts, slots = prompts_a_call(config), config.sampling.slots
    micro_batch = config.prompts_per_micro_batch
    if prompts % micro_batch or config.batch_size % prompts:
        raise ConfigError(
            f"sampling.prompts={prompts} must be a multiple of prompts_per_micro_batch="
            f"{micro_batch} and divide batch_size={config.batch_size}"
        )
    if prompts % parts or slots % parts:
        raise ConfigError(
            f"sampling.prompts={prompts} and sampling.slots={slots} must be multiples of {parts}, "
            "the devices that sample rows of their own; or set config.sampling.tensor"
        )
    settings = config.grpo
    return SamplingConfig(
        group=settings.group,
        slots=slots // parts,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        stop_tokens=stops,
    )


def see(params: nnx.State, images: Images, *, graph: nnx.GraphDef) -> Float[Array, "B V M"]:
    """The visual tokens of a frozen tower."""
    return nnx.merge(graph, params).see(images)


class Rollouts:
    """Samples a step's prompts with the policy as it is."""

    def __init__(
        self,
        run: setup.Run,
        config: ConfigDict,
        forbidden: Bool[np.ndarray, " vocab"],
        stops: tuple[int, ...],
    ):
        self._group, self._share, self._mesh = config.grpo.group, run.share, run.mesh
        self._sampling_mesh = setup.sampling_mesh(config, run.mesh)
        parts = sharding.row_parts(self._sampling_mesh)
        options = sampling_config(config, parts, stops)
        self._micro_batches = prompts_a_call(config) // config.prompts_per_micro_batch
        self._sample = with_resident(
            make_sampler(run.graph, self._sampling_mesh, forbidden, options)
        )
        self._weights_of = make_weights(
            nnx.merge_state(run.state.params, run.frozen),
            config.model.compute_dtype,
            self._sampling_mesh,
        )
        rows, everywhere = sharding.by_rows(run.mesh), sharding.replicated(run.mesh)
        # From mesh to mesh; `device_put` can't where other processes hold a part.
        self._there = jax.jit(lambda x: x, out_shardings=sharding.by_rows(self._sampling_mesh))
        self._back = jax.jit(lambda x: x, out_shardings=rows)
        self._see = None
        if setup.tower_is_frozen(config):
            self._see = jax.jit(functools.partial(see, graph=run.graph), out_shardings=rows)
        self._keys_of = jax.jit(self._keys, out_shardings=rows)
        self._lengths_of = jax.jit(lambda mask: mask.sum(-1), out_shardings=everywhere)

    def _keys(self, key, step, numbers):
        step_key = jax.random.fold_in(jax.random.wrap_key_data(key), step)
        return sample_keys(step_key, numbers, self._group)

    def sample(
        self,
        state: TrainState,
        frozen: nnx.State,
        copies: Any,
        step: int,
        batches: Sequence[PackedBatch],
    ) -> Iterator[Sampled]:
        """Yields what was sampled of each batch, once the devices are at work on the next.

        Args:
          copies: what else lies on the devices.
        """
        everything = nnx.merge_state(state.params, frozen)
        weights = self._weights_of(everything)
        others = state.opt_state, copies, None if weights is everything else everything
        at = sharding.place_everywhere(np.int32(step), self._mesh)

        def draw(number: int, batch: PackedBatch) -> Sampled:
            text, images = sharding.place_rows((batch.text, batch.images), self._mesh)
            if self._see is not None:
                parts = sharding.split_rows(images, self._micro_batches, self._mesh)
                parts = [self._see(everything, part) for part in parts]
                images = sharding.join_rows(parts, self._mesh)
            # Of the step's prompts, this share has every so-manieth.
            size = len(batch.text.tokens)
            numbers = np.arange(number * size, (number + 1) * size, dtype=np.int32)
            numbers = self._share.index + self._share.count * numbers
            keys = self._keys_of(state.key, at, sharding.place_rows(numbers, self._mesh))
            there = self._there((text, images, keys))
            with jax.set_mesh(self._sampling_mesh):
                rollout = self._sample(others, weights, *there)
            rollout = self._back(rollout)
            return Sampled(text, images, rollout, self._lengths_of(rollout.mask))

        drawn = draw(0, batches[0])
        for number, batch in enumerate(batches[1:], start=1):
            jax.block_until_ready(drawn)
            before, drawn = drawn, draw(number, batch)
            yield before
        yield drawn
