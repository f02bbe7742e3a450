"""Time of sampling with slot reuse: a prompt whose completions have ended is replaced by the next.

There are sixteen prompts, of which each device decodes two at a time. "given_back" is one call of
the sampler with slot reuse. "in_turn" is one call for every two prompts per device, each running
until its longest completion has ended. "at_once" decodes all prompts at the same time. Completions
end at random.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.group import Size, collate, make_task
from benchmarks.side_by_side import Variant
from mirg_jax import sharding
from mirg_jax.sampling.sampler import SamplingConfig, make_sampler, sample_keys

SIZE = Size(prompts=16, group=4, length=256, images=1, side=8)  # nearly all time is decoding
SLOTS = 2  # per device
STOPS = 30  # number of stop tokens, so that completions end at random


def slots(base: str, size: Size = SIZE) -> Iterator[Variant]:
    """Yields rollouts of random lengths, with and without slot reuse."""
    task = make_task(base, size)
    vocab = task.model.config.text.vocab_size
    stops = tuple(np.random.default_rng(0).choice(vocab, STOPS, replace=False).tolist())
    devices = sharding.row_parts(task.mesh)
    sampler = functools.partial(make_sampler, task.model.graph, task.mesh, np.zeros(vocab, bool))
    options = {"group": size.group, "max_tokens": size.length, "stop_tokens": stops}
    given_back = sampler(SamplingConfig(slots=SLOTS, **options))
    whole = sampler(SamplingConfig(**options))
    batch = collate(task.prompts)
    keys = sample_keys(jax.random.key(0), jnp.arange(size.prompts), size.group)

    # Each prompt stays on its device: a call takes the next two prompts of each device.
    order = np.arange(size.prompts).reshape(devices, -1, SLOTS).swapaxes(0, 1).reshape(-1)
    calls = order.reshape(-1, devices * SLOTS)
    place = functools.partial(sharding.place_rows, mesh=task.mesh)
    everything = place((batch.text, batch.images)), keys
    parts = [
        (place(jax.tree.map(lambda x, r=rows: x[r], (batch.text, batch.images))), keys[rows])
        for rows in calls
    ]
    masks = {}

    def all_in_one(name, sample):
        def way():
            (text, images), own = everything
            masks[name] = jax.device_get(sample(task.model.params, text, images, own).mask)

        return way

    def in_turn():
        found = [
            jax.device_get(whole(task.model.params, text, images, own).mask)
            for (text, images), own in parts
        ]
        masks["in_turn"] = np.concatenate(found)[np.argsort(order)]

    def longest(groups) -> int:
        """Returns the decoding steps of calls for these groups of prompts, without slot reuse."""
        lengths = masks["in_turn"].sum(-1).max(-1)
        return int(sum(lengths[rows].max() for rows in groups))

    def given_back_steps() -> int:
        """Returns the decoding steps of the slowest device, with slot reuse."""
        lengths = masks["in_turn"].sum(-1).max(-1).reshape(devices, -1)
        busy = np.zeros((devices, SLOTS), int)
        for column in lengths.T:
            busy[np.arange(devices), busy.argmin(1)] += column
        return int(busy.max())

    yield Variant(
        str(size),
        {
            "given_back": all_in_one("given_back", given_back),
            "in_turn": in_turn,
            "at_once": all_in_one("at_once", whole),
        },
        {
            "tokens": lambda: int(masks["in_turn"].sum()),
            "mean_length": lambda: float(masks["in_turn"].sum(-1).mean()),
            "steps_in_turn": lambda: longest(calls),
            "steps_given_back": given_back_steps,
            "steps_at_once": lambda: longest([np.arange(size.prompts)]),
            "equal_lengths": lambda: float((masks["given_back"] == masks["in_turn"]).mean()),
        },
    )


CASES = {"slots": slots}
