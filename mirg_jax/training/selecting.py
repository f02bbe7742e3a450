"""Which of the groups sampled for a step are learned from: chosen, ordered, put into micro-batches.

The choice itself is `rl/selection.py`'s, on rewards that all processes know. Groups are counted in
the order of their prompts in the data, so that it doesn't depend on devices or processes.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from mirg_jax import sharding
from mirg_jax.data.batching import ArraySizes
from mirg_jax.data.examples import Example
from mirg_jax.files.streams import say
from mirg_jax.models.flops import Forward
from mirg_jax.rl import selection
from mirg_jax.runs.settings import Settings
from mirg_jax.sharding import processes
from mirg_jax.training.grpo_programs import Experience, Judgement, make_step_scaling
from mirg_jax.training.rollouts import Facts
from mirg_jax.types import Images, Rollout, Text


class Call(NamedTuple):
    """The prompts, completions and judgement of one call of the sampler, sharded by rows."""

    prompt: Text
    images: Images | Float[Array, "B V M"]
    rollout: Rollout
    judgement: Judgement
    sizes: ArraySizes  # of the prompts' arrays


class Pool(NamedTuple):
    """The groups sampled for a step, with their rewards.

    `facts`, `rewards`, `spread`, `zero_spread` and `tasks` cover the prompts of all processes, in
    the order of the calls' rows; `examples` and `texts` those of this process.
    """

    calls: list[Call]  # emptied when groups have been chosen
    examples: list[Example]
    texts: list[str]
    facts: Facts
    rewards: dict[str, Float[np.ndarray, "B G"]]
    spread: Float[np.ndarray, " B"]  # `rl.selection.reward_spread` of the sums
    zero_spread: Bool[np.ndarray, " B"]
    tasks: list[str]
    prompt_tokens: int
    forward: Forward  # operations of the forward passes over the prompts
    rounds: int = 1

    def joined(self, more: "Pool") -> "Pool":
        """Returns these groups, and behind them those of another round."""
        return Pool(
            self.calls + more.calls,
            self.examples + more.examples,
            self.texts + more.texts,
            Facts(*map(np.concatenate, zip(self.facts, more.facts, strict=True))),
            {name: np.concatenate([r, more.rewards[name]]) for name, r in self.rewards.items()},
            np.concatenate([self.spread, more.spread]),
            np.concatenate([self.zero_spread, more.zero_spread]),
            self.tasks + more.tasks,
            self.prompt_tokens + more.prompt_tokens,
            Forward(*map(sum, zip(self.forward, more.forward, strict=True))),
            self.rounds + more.rounds,
        )


class MiniBatch(NamedTuple):
    """The groups of one update."""

    experiences: list[Experience]  # by micro-batch; empty if there is no group
    completions: int  # number of completions that count in the loss
    tokens: int  # number of their tokens


class Chosen(NamedTuple):
    """The groups that a step learns from."""

    mini_batches: list[MiniBatch]
    used: Bool[np.ndarray, " B"]  # which groups of the pool they are
    above_gate: Bool[np.ndarray, " B"]  # which groups could have been chosen
    advantages: Float[np.ndarray, "b G"]  # of this process's groups in the pool


def shorten(rollout: Rollout, longest: int, lengths: tuple[int, ...]) -> Rollout:
    """Truncates the padding of completions to the smallest allowed length.

    Args:
      rollout: the completions.
      longest: length of the longest completion.
      lengths: the allowed lengths, ascending.
    """
    length = next(limit for limit in lengths if limit >= longest)
    return rollout if length == rollout.tokens.shape[2] else _cut(rollout, length)


@functools.partial(jax.jit, static_argnames="length")
def _cut(rollout: Rollout, length: int) -> Rollout:
    return jax.tree.map(lambda array: array[:, :, :length], rollout)


def widen(experience: Experience, sizes: ArraySizes, wanted: ArraySizes) -> Experience:
    """Pads the arrays of prompts, which then say the same.

    Args:
      experience: prompts with their completions.
      sizes: tokens per row, images per row and patches per image of the arrays.
      wanted: the same of the result, none of them smaller.
    """
    (tokens, slots, patches), (T, S, P) = sizes, wanted
    prompt, images = experience.prompt, experience.images
    index, old, new = prompt.visual_index, patches // 4, P // 4
    index = jnp.where(index < 0, index, index // old * new + index % old)

    def longer(array, value=0):
        widths = [(0, 0), (0, T - tokens)] + [(0, 0)] * (array.ndim - 2)
        return jnp.pad(array, widths, constant_values=value)

    def larger(array, more, value=0):
        widths = [(0, 0), (0, S - slots), (0, more)] + [(0, 0)] * (array.ndim - 3)
        return jnp.pad(array, widths, constant_values=value)

    text = Text(
        longer(prompt.tokens), longer(prompt.positions), longer(prompt.segments), longer(index, -1)
    )
    if isinstance(images, Images):
        images = Images(
            larger(images.patches, P - patches), larger(images.positions, P - patches, -1)
        )
    else:
        apart = images.reshape(len(images), slots, old, -1)
        images = larger(apart, new - old).reshape(len(images), S * new, -1)
    return experience._replace(prompt=text, images=images)


def fill_in(
    total: Experience | None,
    part: Experience,
    here: Bool[Array, " B"],
    sizes: ArraySizes,
    wanted: ArraySizes,
) -> Experience:
    """Replaces the rows `here` of a micro-batch by those of `part`, padded to the wanted sizes."""
    part = widen(part, sizes, wanted)
    if total is None:
        return part

    def one(old, new):
        return jnp.where(here.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(one, total, part)


def without_padding(experience: Experience, real: Bool[Array, " B"]) -> Experience:
    """Masks the completions of rows that only fill a micro-batch up."""
    rollout = experience.rollout
    return experience._replace(
        rollout=rollout._replace(mask=rollout.mask & real[:, None, None]),
        advantages=jnp.where(real[:, None], experience.advantages, 0.0),
    )


class Selector:
    """Chooses from the groups sampled for a step those that it learns from.

    Args:
      settings: the run's settings.
      mesh: the training mesh.
    """

    def __init__(self, settings: Settings, mesh: Mesh):
        self._settings, self._grpo, self._mesh = settings, settings.grpo, mesh
        rows = sharding.by_rows(mesh)
        self._told = False  # that a step had no group to learn from
        self._learned = False  # whether any step had one
        self._scale_over_step = make_step_scaling(settings.grpo, mesh)
        self._fill_in = jax.jit(
            fill_in, static_argnames=("sizes", "wanted"), donate_argnums=0, out_shardings=rows
        )
        self._without_padding = jax.jit(without_padding, out_shardings=rows)

    def bound(self, step: int) -> float | None:
        """Returns the reward spread that the groups of a step must exceed; None for any.

        Args:
          step: number of steps taken before.
        """
        return selection.threshold(self._grpo.gate, step, self._settings.num_steps)

    def _note(self, step: int, chosen: int, rounds: int) -> None:
        """Notes whether a step has a group to learn from; says once if it has none."""
        self._learned = self._learned or chosen > 0
        if chosen or self._told or not processes.is_first():
            return
        self._told = True
        sampled = f" in {rounds} rounds of sampling" if rounds > 1 else ""
        say(
            f"step {step + 1}: no group's rewards spread by more than grpo.gate="
            f"{self.bound(step):g}{sampled}, so nothing is learned from it; if used_fraction stays "
            "at 0, lower the gate or see in groups/ whether the rewards tell completions apart"
        )

    def why_idle(self, skipped: int) -> str:
        """Returns why a run that has ended has learned nothing; "" if it has learned something.

        Args:
          skipped: number of updates skipped in the whole run.
        """
        run = self._settings
        if (
            self._learned
            or not run.num_steps
            or skipped < run.num_steps * run.updates_per_step
            or not self._grpo.gate
        ):
            return ""
        gate = ",".join(f"{bound:g}" for bound in self._grpo.gate)
        return (
            f"nothing was learned in {run.num_steps} steps: no group's rewards spread by more than "
            f"grpo.gate={gate}; lower it if it isn't 0, or see in groups/ whether the rewards tell "
            "completions apart"
        )

    def wants_more(self, step: int, pool: Pool) -> bool:
        """Returns whether to sample another round: the step isn't full, and the cap not reached."""
        kept = selection.above(pool.spread, self.bound(step))
        return len(kept) < self._settings.batch_size and pool.rounds < self._grpo.max_rounds

    def choose(self, step: int, pool: Pool) -> Chosen:
        """Chooses the groups to learn from, and frees the others.

        Args:
          step: number of steps taken before.
          pool: the step's groups.
        """
        grpo, rewards = self._grpo, pool.rewards["reward"]
        used, chosen = np.ones(len(rewards), bool), np.arange(0)
        above_gate = used
        if grpo.selects:
            order = np.argsort(pool.facts.numbers)
            size = self._settings.batch_size
            bound = self.bound(step)
            given = rewards[order], pool.spread[order], bound, size
            chosen = order[selection.choose(*given, order=grpo.order)]
            used = np.isin(np.arange(len(rewards)), chosen)
            above_gate = np.isin(np.arange(len(rewards)), selection.above(pool.spread, bound))
            self._note(step, len(chosen), pool.rounds)
        advantages = self._advantages(pool, used)
        if grpo.selects:
            parts = selection.mini_batches(chosen, grpo.mini_batches)
            found = [self._gathered(pool, advantages, rows) for rows in parts]
        else:
            found = [self._all(pool, advantages)]
        pool.calls.clear()
        own = np.concatenate([*map(sharding.local_rows, advantages)])
        return Chosen(found, used, above_gate, own)

    def _advantages(
        self, pool: Pool, used: Bool[np.ndarray, " B"]
    ) -> Sequence[Float[Array, "b G"]]:
        """Returns the advantages of each call, by the statistics of the groups that are used."""
        judgements = [call.judgement for call in pool.calls]
        if not self._scale_over_step or not used.any():
            return [judgement.advantages for judgement in judgements]
        where = sharding.place_everywhere(used, self._mesh) if self._grpo.selects else None
        return self._scale_over_step(judgements, where)

    def _all(self, pool: Pool, advantages: Sequence[Float[Array, "b G"]]) -> MiniBatch:
        """Returns all groups, as they lie on the devices."""
        count = self._settings.sampled_prompts // self._settings.micro_batch
        longest = pool.facts.lengths.reshape(len(pool.calls), -1).max(axis=1)
        experiences = []
        for call, own, most in zip(pool.calls, advantages, longest, strict=True):
            rollout = shorten(call.rollout, int(most), self._grpo.completion_lengths)
            whole = Experience(call.prompt, call.images, rollout, own, reference=None)
            experiences += sharding.split_rows(whole, count, self._mesh)
        return self._mini_batch(pool, experiences, np.arange(len(pool.zero_spread)))

    def _gathered(
        self, pool: Pool, advantages: Sequence[Float[Array, "b G"]], rows: Int[np.ndarray, " K"]
    ) -> MiniBatch:
        """Returns some groups, gathered from the devices that sampled them."""
        size = self._settings.micro_batch
        parts = [rows[at : at + size] for at in range(0, len(rows), size)]
        gathered = [self._micro_batch(pool, advantages, part) for part in parts]
        return self._mini_batch(pool, gathered, rows)

    def _mini_batch(
        self, pool: Pool, experiences: list[Experience], rows: Int[np.ndarray, " K"]
    ) -> MiniBatch:
        lengths = pool.facts.lengths[rows]
        if self._grpo.mask_cut:
            lengths = lengths[~pool.facts.cut[rows]]
        return MiniBatch(experiences, lengths.size, int(lengths.sum()))

    def _micro_batch(
        self, pool: Pool, advantages: Sequence[Float[Array, "b G"]], rows: Int[np.ndarray, " K"]
    ) -> Experience:
        size, per_call = self._settings.micro_batch, self._settings.sampled_prompts
        padded = np.full(size, rows[0])
        padded[: len(rows)] = rows
        numbers = sorted(set((padded // per_call).tolist()))
        wanted = tuple(map(max, zip(*(pool.calls[n].sizes for n in numbers), strict=True)))
        place: Any = functools.partial(sharding.place_everywhere, mesh=self._mesh)
        total = None
        for number in numbers:
            call, own = pool.calls[number], padded - number * per_call
            whole = Experience(call.prompt, call.images, call.rollout, advantages[number], None)
            part = sharding.take_rows(whole, place(own.astype(np.int32)), self._mesh)
            here = place((own >= 0) & (own < per_call))
            total = self._fill_in(total, part, here, sizes=call.sizes, wanted=wanted)
        if len(rows) < size:
            total = self._without_padding(total, place(np.arange(size) < len(rows)))
        longest = int(pool.facts.lengths[rows].max())
        lengths = self._grpo.completion_lengths
        return total._replace(rollout=shorten(total.rollout, longest, lengths))
