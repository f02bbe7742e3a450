"""Image-aware GRPO (the paper's stage 2): samples groups, computes rule-based rewards, updates.

Each step: prompts → rollout → parsed answers → rewards → advantages → chosen groups → loss. The
mathematics is in `mirg_jax.rl`, the jitted functions are in `grpo_programs.py`, the choice of
groups in `selecting.py`; this file is the training loop.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from mirg_jax import sharding
from mirg_jax.data.answers import answer_arrays, target_arrays
from mirg_jax.data.examples import Example
from mirg_jax.errors import RewardError
from mirg_jax.files.places import Place
from mirg_jax.files.streams import Spare
from mirg_jax.models import lora
from mirg_jax.models.qwen2_vl import computed_dtypes
from mirg_jax.rl.selection import reward_spread
from mirg_jax.runs.settings import GrpoSettings, Settings
from mirg_jax.runs.train_state import TrainState, split_trainable
from mirg_jax.sampling.tokens import decode, forbidden_ids
from mirg_jax.sharding import processes
from mirg_jax.sharding.memory import with_resident
from mirg_jax.training import groups, rollouts, usable, watching
from mirg_jax.training.grpo_programs import (
    PolicyOptions,
    Totals,
    make_gradients,
    make_judge,
    policy_values,
    reference_values,
    statistics,
)
from mirg_jax.training.loop import Loop, Outcome, StepBatches
from mirg_jax.training.optimizer import make_apply
from mirg_jax.training.rollouts import Facts, Rollouts
from mirg_jax.training.selecting import Call, Chosen, Pool, Selector
from mirg_jax.training.speed import grpo_operations
from mirg_jax.training.start import TrainingRun, claimed, start
from mirg_jax.training.text_rewards import TextRewards, not_finite
from mirg_jax.types import Scalars


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
        # Of a mini-batch, if it is full.
        self._micro_batches = (
            settings.batch_size // settings.micro_batch // settings.grpo.mini_batches
        )
        forbidden = forbidden_ids(run.tokenizer, run.model.text.vocab_size)
        policy = PolicyOptions(run.graph, forbidden, settings.grpo, settings.logprob_chunk)
        self._rollouts = Rollouts(run, forbidden, self.copies)
        self._judge = make_judge(settings.grpo, run.mesh)
        self._text_rewards = TextRewards(self.grpo.rewards, self.grpo.text_reward_seconds)
        self.selector = Selector(settings, run.mesh)
        self._leave_out = jax.jit(rollouts.leave_out, out_shardings=sharding.by_rows(run.mesh))
        self._gradients = make_gradients(run.layout, policy)
        self._apply = make_apply(run.optimizer, run.layout)
        self._increment = jax.jit(lambda n: n + 1, out_shardings=sharding.replicated(run.mesh))
        self._decode = functools.partial(
            decode,
            run.tokenizer,
            end_tokens=run.model.end_tokens,
            opening=settings.prompt.opening,
        )

        self._reference = run.frozen
        if self.copies is not None:
            self._reference = nnx.merge_state(self.copies, run.frozen)
        options = policy._replace(graph=run.model_graph)
        self._reference_of = with_resident(functools.partial(reference_values, options=options))
        self._reference_head = None
        if self.grpo.beta and self.grpo.kl == "exact":
            head = jax.jit(lambda params: nnx.merge(run.model_graph, params).head())
            self._reference_head = head(self._reference)
        self._policy_of = None
        if self.grpo.takes_policy_before:
            self._policy_of = with_resident(functools.partial(policy_values, options=policy))

    def sample(self, loop: Loop, state: TrainState, batches: StepBatches) -> Pool | None:
        """Samples a step's groups and computes their rewards, in as many rounds as it needs.

        Completions are parsed on the host while the devices sample the next ones.

        Args:
          loop: the loop, which gives the prompts of further rounds.
          state: the training state.
          batches: the step's first prompts.

        Returns:
          The groups; None if the run is to end first, between two rounds. The step then counts as
          not begun.

        Raises:
          RewardError: in all processes, if a reward fails or isn't finite.
        """
        pool = self._round(loop, state, batches)
        while self.selector.wants_more(batches.step, pool):
            more = loop.another_round(batches)
            if more is None:
                return None
            batches = more
            pool = pool.joined(self._round(loop, state, batches))
        return pool

    def _round(self, loop: Loop, state: TrainState, batches: StepBatches) -> Pool:
        with jax.set_mesh(self.mesh), jax.transfer_guard("disallow"):
            return self._sample_and_judge(loop, state, batches)

    def _sample_and_judge(self, loop: Loop, state: TrainState, batches: StepBatches) -> Pool:
        calls, facts, examples, texts, problem = [], [], [], [], ""
        sampled = self._rollouts.sample(state, batches)
        for _ in batches.parts:
            with loop.phase("rollout"):
                found = next(sampled)
                facts.append(jax.device_get(found.facts))
                tokens = sharding.local_rows(found.rollout.tokens)
                mask = sharding.local_rows(found.rollout.mask)
            with loop.phase("reward"):
                said = self._decode(tokens, mask)
                size = self.grpo.max_objects
                lengths = mask.sum(-1)
                answers = answer_arrays(said, found.examples, lengths, size)
                answers = answers._replace(told=self._text_rewards(said, found.examples, lengths))
                problem = problem or self._text_rewards.problem
                targets = target_arrays(found.examples, self.grpo.group, size)
                judgement = self._judge(*sharding.place_rows((answers, targets), self.mesh))
            rollout = found.rollout
            if self.grpo.mask_cut:
                rollout = self._leave_out(rollout, found.facts.cut)
            calls.append(Call(found.prompt, found.images, rollout, judgement, found.sizes))
            examples += found.examples
            texts += said
        sampled.close()  # frees the sampling weights
        rewards, equal = jax.device_get(
            (
                [call.judgement.rewards for call in calls],
                [call.judgement.zero_spread for call in calls],
            )
        )
        known = Facts(*map(np.concatenate, zip(*facts, strict=True)))
        first = batches.round * len(batches.tasks)
        joined = {name: np.concatenate([part[name] for part in rewards]) for name in rewards[0]}
        self._check_finite(joined, examples, problem)
        return Pool(
            calls,
            examples,
            texts,
            known,
            joined,
            reward_spread(joined["reward"]),
            np.concatenate(equal),
            [batches.tasks[number - first] for number in known.numbers],
            batches.tokens,
            batches.forward,
        )

    def _check_finite(
        self,
        rewards: Mapping[str, Float[np.ndarray, "B G"]],
        examples: Sequence[Example],
        problem: str,
    ) -> None:
        """Raises RewardError in all processes, unless all rewards are finite.

        Args:
          rewards: by name, of the prompts of all processes.
          examples: those of this process.
          problem: what this process knows of it.
        """
        if all(np.isfinite(values).all() for values in rewards.values()):
            return
        rows = self._own_rows(len(rewards["reward"]))
        for name, values in sorted(rewards.items(), key=lambda item: item[0] == "reward"):
            bad = np.argwhere(~np.isfinite(values[rows]))
            if len(bad) and not problem:
                (row, one) = bad[0]
                problem = not_finite(name, float(values[rows][row, one]), examples[row])
        with jax.transfer_guard("allow"):
            raise RewardError(next(filter(None, processes.gather(problem))))

    def _own_rows(self, count: int) -> Int[np.ndarray, " b"]:
        """Returns which of `count` prompts, in the order of the calls' rows, this process has."""
        per_call = self.run.settings.sampled_prompts
        mine = sharding.local_row_numbers(per_call, self.mesh)
        return (np.arange(count // per_call)[:, None] * per_call + mine).reshape(-1)

    def refer(self, loop: Loop, state: TrainState, chosen: Chosen) -> None:
        """Adds what an update needs to the experiences: of the reference policy, and of π_old."""
        if not (self.grpo.beta or self._policy_of):
            return
        with loop.phase("reference"):
            for experiences, *_ in chosen.mini_batches:
                for i, experience in enumerate(experiences):
                    given = experience.prompt, experience.images, experience.rollout
                    if self.grpo.beta:
                        resident = sharding.resident((state.params, state.opt_state))
                        values = self._reference_of(resident, self._reference, *given)
                        experience = experience._replace(reference=values)
                    if self._policy_of:
                        policy = nnx.merge_state(state.params, self.run.frozen)
                        resident = sharding.resident((state.opt_state, self.copies))
                        values = self._policy_of(resident, policy, *given)
                        experience = experience._replace(before=values)
                    experiences[i] = experience

    def update(
        self, loop: Loop, state: TrainState, chosen: Chosen
    ) -> tuple[TrainState, Outcome, Scalars]:
        """Takes the step's optimizer updates on the chosen groups, one for each mini-batch.

        Returns:
          The new state, the outcome of the last update, and the statistics of all.
        """
        with loop.phase("update"):
            loss, norm, told = np.float32(0), np.float32(0), []
            for mini_batch in self.grpo.updates * chosen.mini_batches:
                if not mini_batch.experiences:
                    state = state._replace(skipped=self._increment(state.skipped))
                    continue
                # With all completions left out the loss is 0.
                counts = mini_batch.completions, mini_batch.tokens
                totals = Totals(*(np.float32(max(count, 1)) for count in counts))
                totals = sharding.place_everywhere(totals, self.mesh)
                given = state.params, self.run.frozen
                calls = [(*given, e, totals, self._reference_head) for e in mini_batch.experiences]
                resident = sharding.resident((state.opt_state, self.copies))
                summed = self._gradients.sum(resident, calls, self._micro_batches)
                (loss, parts), grads = summed
                state, norm = self._apply(state, grads, loss)
                told.append(parts)
            means = mean_statistics(jax.device_get(told), self.grpo)
            return state, Outcome.fetch(loss, norm, state), means

    def log_groups(self, loop: Loop, step: int, pool: Pool, chosen: Chosen) -> None:
        """Writes and shows some of this process's groups, every `grpo.log_groups_every` steps."""
        every = self.grpo.log_groups_every
        if not (every and step % every == 0 and self.run.is_first):
            return
        rows = self._own_rows(len(chosen.used))
        values = {name: reward[rows] for name, reward in pool.rewards.items()}
        values["advantage"] = chosen.advantages
        used = chosen.used[rows] if self.grpo.selects else None
        found = groups.rows(pool.examples, pool.texts, values, self.grpo.log_groups, used)
        self._spare(groups.write, self.run.workdir, step + 1, found)
        if loop.metrics.shows_groups:
            data = self.run.settings.data
            columns, cells = groups.table(pool.examples, found, data.root(data.image_root))
            loop.metrics.show_groups(step + 1, columns, cells)


def mean_statistics(told: Sequence[Scalars], grpo: GrpoSettings) -> Scalars:
    """Returns the means over a step's updates; of `logprob_diff` the first, before any of them."""
    if not told:
        return dict.fromkeys(statistics(grpo), 0.0)
    means = {name: np.mean([each[name] for each in told]) for name in told[0]}
    return means | {"logprob_diff": told[0]["logprob_diff"]}


def train(settings: Settings, workdir: Place) -> None:
    """Runs or resumes GRPO training.

    Args:
      settings: see `defaults.grpo`.
      workdir: the run's folder.

    Raises:
      UserError: if a setting, the data or a checkpoint can't be used.
    """
    with claimed(settings, workdir):
        run = start(settings, workdir, with_response=False, refuse=usable.refusal(settings))
        trainer = Trainer(run)
        run = trainer.run
        loop = Loop(run, "grpo", resident=trainer.copies)
        prompts = settings.sampled_prompts // run.share.count
        state, failure = run.state, ""

        divide = functools.partial(rollouts.divide, size=prompts)
        for batches in loop.steps(divide):
            try:
                pool = trainer.sample(loop, state, batches)
            except RewardError as error:  # what was learned before is saved
                failure = f"step {batches.step + 1}: {error}"
                break
            if pool is None:
                break
            with jax.set_mesh(run.mesh), jax.transfer_guard("disallow"):
                chosen = trainer.selector.choose(batches.step, pool)
                trainer.refer(loop, state, chosen)
                state, outcome, measured = trainer.update(loop, state, chosen)
            trainer.log_groups(loop, batches.step, pool, chosen)
            tokens = pool.prompt_tokens / len(pool.tasks)
            lengths, used = pool.facts.lengths, chosen.used
            state = loop.end_step(
                state,
                outcome,
                watching.scalars(settings.grpo, pool, chosen, measured),
                shown=("reward", "kl"),
                tokens=pool.prompt_tokens + int(lengths.sum()),
                operations=grpo_operations(
                    settings, run.model, pool.forward, tokens, lengths, used
                ),
            )

        skipped = int(jax.device_get(state.skipped))
        loop.finish(state, failure=failure or trainer.selector.why_idle(skipped))
