"""Image-aware GRPO (the paper's stage 2): samples groups, computes rule-based rewards, updates.

Each step: prompts → rollout → parsed answers → rewards → advantages → loss. The mathematics is in
`mirg_jax.rl` and the jitted functions are in `grpo_programs.py`; this file is the training loop.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from mirg_jax import sharding
from mirg_jax.data.examples import Example
from mirg_jax.files.places import Place
from mirg_jax.files.streams import Spare
from mirg_jax.models import lora
from mirg_jax.models.qwen2_vl import computed_dtypes
from mirg_jax.runs.settings import Settings
from mirg_jax.runs.train_state import TrainState, split_trainable
from mirg_jax.sampling.tokens import decode, forbidden_ids
from mirg_jax.sharding.memory import with_resident
from mirg_jax.training import groups, rollouts
from mirg_jax.training.answers import answer_arrays, target_arrays, why_unusable
from mirg_jax.training.grpo_programs import (
    Experience,
    PolicyOptions,
    Totals,
    make_gradients,
    make_judge,
    reference_values,
)
from mirg_jax.training.loop import Loop, Outcome, StepBatches
from mirg_jax.training.optimizer import make_apply
from mirg_jax.training.rollouts import Rollouts
from mirg_jax.training.speed import grpo_operations
from mirg_jax.training.start import TrainingRun, claimed, start
from mirg_jax.types import Rollout, Scalars


class Groups(NamedTuple):
    """The groups sampled in a step, with their rewards.

    `lengths`, `rewards` and `zero_spread` cover the prompts of all processes; `examples`, `texts`
    and `advantages` those of this process.
    """

    experiences: list[Experience]
    examples: list[Example]
    texts: list[str]
    lengths: Int[np.ndarray, "B G"]
    rewards: dict[str, Float[np.ndarray, "B G"]]
    zero_spread: np.ndarray
    advantages: Float[np.ndarray, "b G"]


def shorten(rollout: Rollout, longest: int, lengths: tuple[int, ...]) -> Rollout:
    """Truncates the padding of completions to the smallest allowed length.

    Args:
      rollout: the completions.
      longest: length of the longest completion.
      lengths: the allowed lengths, ascending.
    """
    length = next(limit for limit in lengths if limit >= longest)
    return jax.tree.map(lambda array: jax.lax.slice_in_dim(array, 0, length, axis=2), rollout)


def copy_of_reference(run: TrainingRun) -> nnx.State | None:
    """Copies the initial values of the trained parameters, for the reference policy.

    A copy is needed because the policy's arrays are donated at every update. It has the dtypes that
    the computation uses.

    Returns:
      The copy; None without a KL penalty, and with LoRA, where the frozen base is the reference.
    """
    if not run.settings.grpo.beta or lora.is_adapters(run.state.params):
        return None
    trained, _ = split_trainable(run.initial, run.settings.freeze)
    dtypes = computed_dtypes(trained, run.settings.model.precision.compute)
    copy = jax.jit(lambda params: jax.tree.map(lambda p, d: jnp.array(p, d), params, dtypes))
    return copy(trained)


class Trainer:
    """The jitted functions of a step, and the reference policy.

    Args:
      run: the run.
    """

    def __init__(self, run: TrainingRun):
        settings = run.settings
        self.copies = copy_of_reference(run)
        self.run = run = run._replace(initial=None)
        self.grpo, self.mesh = settings.grpo, run.mesh
        self._spare = Spare(f"{run.workdir / 'groups'}")
        self._micro_batches = settings.sampled_prompts // settings.micro_batch
        forbidden = forbidden_ids(run.tokenizer, run.model.text.vocab_size)
        policy = PolicyOptions(run.graph, forbidden, settings.grpo, settings.logprob_chunk)
        self._rollouts = Rollouts(run, forbidden, self.copies)
        self._judge = make_judge(settings.grpo, run.mesh)
        self._gradients = make_gradients(run.layout, policy)
        self._apply = make_apply(run.optimizer, run.layout)

        self._reference = run.frozen
        if self.copies is not None:
            self._reference = nnx.merge_state(self.copies, run.frozen)
        options = policy._replace(graph=run.model_graph)
        self._reference_of = with_resident(functools.partial(reference_values, options=options))
        self._reference_head = None
        if self.grpo.beta and self.grpo.kl == "exact":
            head = jax.jit(lambda params: nnx.merge(run.model_graph, params).head())
            self._reference_head = head(self._reference)

    def sample_and_judge(self, loop: Loop, state: TrainState, batches: StepBatches) -> Groups:
        """Samples a step's groups and computes their rewards and advantages.

        Completions are parsed on the host while the devices sample the next ones.
        """
        experiences, judgements, examples, texts, lengths = [], [], [], [], []
        sampled = self._rollouts.sample(state, batches)
        for _ in batches.parts:
            with loop.phase("rollout"):
                found = next(sampled)
                call_lengths = jax.device_get(found.lengths)
                tokens = sharding.local_rows(found.rollout.tokens)
                mask = sharding.local_rows(found.rollout.mask)
            with loop.phase("reward"):
                said = decode(self.run.tokenizer, tokens, mask, self.run.model.end_tokens)
                size = self.grpo.max_objects
                answers = answer_arrays(said, found.examples, mask, size)
                targets = target_arrays(found.examples, self.grpo.group, size)
                judgement = self._judge(*sharding.place_rows((answers, targets), self.mesh))
            rollout = shorten(found.rollout, int(call_lengths.max()), self.grpo.completion_lengths)
            experience = Experience(
                found.prompt, found.images, rollout, judgement.advantages, reference=None
            )
            experiences += sharding.split_rows(experience, self._micro_batches, self.mesh)
            judgements.append(judgement)
            examples += found.examples
            texts += said
            lengths.append(call_lengths)
        sampled.close()  # frees the sampling weights
        rewards, equal = jax.device_get(
            ([j.rewards for j in judgements], [j.zero_spread for j in judgements])
        )
        return Groups(
            experiences,
            examples,
            texts,
            np.concatenate(lengths),
            {name: np.concatenate([part[name] for part in rewards]) for name in rewards[0]},
            np.concatenate(equal),
            np.concatenate([sharding.local_rows(j.advantages) for j in judgements]),
        )

    def refer(self, loop: Loop, state: TrainState, experiences: list[Experience]) -> None:
        """Adds the reference policy's values to the experiences, if there is a KL penalty."""
        if not self.grpo.beta:
            return
        with loop.phase("reference"):
            resident = state.params, state.opt_state
            for i, experience in enumerate(experiences):
                prompt, images, rollout, _, _ = experience
                values = self._reference_of(resident, self._reference, prompt, images, rollout)
                experiences[i] = experience._replace(reference=values)

    def update(
        self, loop: Loop, state: TrainState, sampled: Groups
    ) -> tuple[TrainState, Outcome, Scalars]:
        """Takes the step's optimizer updates on the sampled groups.

        Returns:
          The new state, the outcome of the last update, and the statistics of the first one.
        """
        lengths = sampled.lengths
        with loop.phase("update"):
            totals = Totals(np.float32(lengths.size), np.float32(lengths.sum()))
            totals = sharding.place_everywhere(totals, self.mesh)
            first = None
            for _ in range(self.grpo.updates):
                given = state.params, self.run.frozen
                calls = [(*given, e, totals, self._reference_head) for e in sampled.experiences]
                resident = state.opt_state, self.copies
                (loss, statistics), grads = self._gradients.sum(resident, calls, len(calls))
                state, norm = self._apply(state, grads, loss)
                first = first or statistics  # later updates are off-policy by design
            return state, Outcome.fetch(loss, norm, state), jax.device_get(first)

    def log_groups(self, step: int, sampled: Groups) -> None:
        """Writes some of this process's groups, every `grpo.log_groups_every` steps."""
        every = self.grpo.log_groups_every
        if not (every and step % every == 0 and self.run.is_first):
            return
        calls = len(sampled.lengths) // self.run.settings.sampled_prompts
        mine = sharding.local_row_numbers(self.run.settings.sampled_prompts, self.mesh)
        rows = (np.arange(calls)[:, None] * self.run.settings.sampled_prompts + mine).reshape(-1)
        values = {name: reward[rows] for name, reward in sampled.rewards.items()}
        values["advantage"] = sampled.advantages
        examples, texts = sampled.examples, sampled.texts
        count = self.grpo.log_groups
        self._spare(groups.write, self.run.workdir, step + 1, examples, texts, values, count)


def scalars_of(sampled: Groups, statistics: Scalars, max_tokens: int) -> Scalars:
    """Returns the metrics of a step that only GRPO logs."""
    parts = {name: value.mean() for name, value in sampled.rewards.items()}
    return {
        "reward": parts.pop("reward"),
        **{f"reward_{name}": value for name, value in parts.items()},
        **statistics,
        "completion_length": sampled.lengths.mean(),
        "cut_fraction": (sampled.lengths == max_tokens).mean(),
        "zero_spread_fraction": sampled.zero_spread.mean(),
    }


def train(settings: Settings, workdir: Place) -> None:
    """Runs or resumes GRPO training.

    Args:
      settings: see `defaults.grpo`.
      workdir: the run's folder.

    Raises:
      UserError: if a setting, the data or a checkpoint can't be used.
    """
    refuse = functools.partial(why_unusable, size=settings.grpo.max_objects)
    with claimed(settings, workdir):
        run = start(settings, workdir, with_response=False, refuse=refuse)
        trainer = Trainer(run)
        run = trainer.run
        loop = Loop(run, "grpo", resident=trainer.copies)
        prompts = settings.sampled_prompts // run.share.count
        state = run.state

        for batches in loop.steps(lambda items: rollouts.divide(items, prompts)):
            with jax.set_mesh(run.mesh), jax.transfer_guard("disallow"):
                sampled = trainer.sample_and_judge(loop, state, batches)
                trainer.refer(loop, state, sampled.experiences)
                state, outcome, statistics = trainer.update(loop, state, sampled)
            trainer.log_groups(batches.step, sampled)
            scalars = scalars_of(sampled, statistics, settings.grpo.max_tokens)
            prompt = batches.tokens / len(sampled.lengths)
            state = loop.end_step(
                state,
                outcome,
                scalars,
                shown=("reward", "kl"),
                tokens=batches.tokens + int(sampled.lengths.sum()),
                operations=grpo_operations(
                    settings, run.model, batches.forward, prompt, sampled.lengths
                ),
            )

        loop.finish(state)
