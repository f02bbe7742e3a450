"""Image-aware GRPO (the paper's stage 2): sample groups, reward them by rule, update.

Each step: prompts → rollout → parsed answers → rewards → advantages → loss. All mathematics is in
`mirg_jax.rl`; this file is the loop.
"""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from mirg_jax import sharding
from mirg_jax.data.examples import Example
from mirg_jax.errors import ConfigError
from mirg_jax.models import lora
from mirg_jax.models.qwen2_vl import computed_dtypes
from mirg_jax.rl import objective, rewards
from mirg_jax.rl.advantages import group_advantages, zero_spread
from mirg_jax.rl.logprobs import exact_kl, token_logprobs
from mirg_jax.runs.metrics import Metrics
from mirg_jax.runs.train_state import TrainState, split_trainable
from mirg_jax.sampling.tokens import decode, forbidden_ids, stop_ids
from mirg_jax.sharding import processes
from mirg_jax.sharding.memory import accumulating, with_resident
from mirg_jax.training import setup
from mirg_jax.training.answers import answer_arrays, target_arrays
from mirg_jax.training.held_out import HeldOut, load_benchmark
from mirg_jax.training.lifecycle import Lifecycle
from mirg_jax.training.optimizer import make_apply, schedule
from mirg_jax.training.rollouts import Rollouts, prompts_a_call, sampling_config
from mirg_jax.types import Images, Rollout, Text


class Experience(NamedTuple):
    """What the update needs of one micro-batch of prompts and their sampled groups."""

    prompt: Text
    images: Images | Float[Array, "B V M"]  # where the tower is frozen, their visual tokens
    rollout: Rollout
    advantages: Float[Array, "B G"]
    # Log-probs [B, G, L] of π_ref, for the exact KL hidden states [B, G, L, M]; None until known.
    reference: Any


class Totals(NamedTuple):
    """Completions and completion tokens of the whole step, for its means."""

    sequences: Float[Array, ""]
    tokens: Float[Array, ""]


def loss(
    params: nnx.State,
    frozen: nnx.State,
    experience: Experience,
    totals: Totals,
    reference_head: Float[Array, "M vocab"] | None,
    *,
    graph: nnx.GraphDef,
    forbidden: np.ndarray,
    config: ConfigDict,
    chunk: int,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """This micro-batch's share of −J of equation 5, and of the step's statistics."""
    model = nnx.merge(graph, params, frozen)
    rollout = experience.rollout
    hidden = model.completion_hidden(experience.prompt, experience.images, rollout)
    options = {"temperature": config.temperature, "forbidden": forbidden, "chunk": chunk}
    logprobs = token_logprobs(hidden, model.head(), rollout.tokens, **options)

    policy = objective.policy_loss(
        logprobs,
        rollout.logprobs,
        experience.advantages,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
    )
    if config.beta == 0:
        kl = jnp.zeros_like(logprobs)
    elif config.kl == "exact":
        kl = exact_kl(hidden, model.head(), experience.reference, reference_head, **options)
    else:
        kl = objective.kl_estimate(logprobs, experience.reference, config.kl, config.kl_clamp)

    def mean(values, kind):
        return objective.reduce_tokens(values, rollout.mask, kind, **totals._asdict())

    value = mean(policy.loss + config.beta * kl, config.normalisation)
    return value, {
        "kl": mean(kl, "token"),
        "logprob_diff": mean(jnp.abs(logprobs - rollout.logprobs), "token"),
        "clip_fraction": mean(policy.clipped.astype(jnp.float32), "token"),
    }


def make_gradients(layout: TrainState, **options) -> Callable:
    """`loss`, statistics and gradients, as `accumulating`; laid out as the parameters are."""
    return accumulating(
        jax.value_and_grad(functools.partial(loss, **options), has_aux=True),
        out_shardings=((layout.step, layout.step), layout.params),
    )


def reference_values(
    params: nnx.State,
    prompt: Text,
    images: Images | Float[Array, "B V M"],
    rollout: Rollout,
    *,
    graph: nnx.GraphDef,
    forbidden: np.ndarray,
    config: ConfigDict,
    chunk: int,
) -> Any:
    """What the KL penalty needs of the reference policy; see `Experience.reference`."""
    model = nnx.merge(graph, params)
    hidden = model.completion_hidden(prompt, images, rollout)
    if config.kl == "exact":
        return hidden
    options = {"temperature": config.temperature, "forbidden": forbidden, "chunk": chunk}
    return token_logprobs(hidden, model.head(), rollout.tokens, **options)


def check(config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
    """Raises ConfigError for settings that can't work, before anything is loaded."""
    for name, allowed in {
        "kl": ("k1", "k2", "k3", "exact"),
        "normalisation": ("sequence", "token", "constant"),
        "advantage_scale": ("std", "none"),
    }.items():
        if config.grpo[name] not in allowed:
            raise ConfigError(f"grpo.{name}={config.grpo[name]!r} is none of {', '.join(allowed)}")
    if config.batch_size % config.prompts_per_micro_batch:
        raise ConfigError("batch_size must be a multiple of prompts_per_micro_batch")
    parts = sharding.row_parts(mesh)
    if config.prompts_per_micro_batch % parts:
        raise ConfigError(
            f"prompts_per_micro_batch={config.prompts_per_micro_batch} can't be divided over "
            f"{parts} devices; make it a multiple, or set config.mesh"
        )
    sampling_config(config, sharding.row_parts(setup.sampling_mesh(config, mesh)), ())
    if config.grpo.group < 2:
        raise ConfigError("grpo.group must be at least 2: advantages compare completions")
    if config.grpo.completion_lengths[-1] < config.grpo.max_tokens:
        raise ConfigError("the last of grpo.completion_lengths must be grpo.max_tokens or more")
    if config.grpo.temperature <= 0:
        raise ConfigError("grpo.temperature must be above 0: equal completions teach nothing")
    try:
        rewards.resolve(config.grpo.rewards)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def shorten(rollout: Rollout, longest: int, lengths: tuple[int, ...]) -> Rollout:
    """Cuts the padding behind the longest completion, down to one of a few lengths."""
    length = next(limit for limit in lengths if limit >= longest)
    return Rollout(*(jax.lax.slice_in_dim(array, 0, length, axis=2) for array in rollout))


def write_groups(
    path: pathlib.Path, examples: list[Example], texts: list[str], parts: dict, count: int
) -> None:
    """Writes the first `count` groups as JSON lines, to be read: question, answers, rewards."""
    path.parent.mkdir(exist_ok=True)
    group = len(texts) // len(examples)
    with path.open("w") as file:
        for i, example in enumerate(examples[:count]):
            completions = [
                {"text": texts[i * group + g]}
                | {name: round(float(values[i, g]), 4) for name, values in parts.items()}
                for g in range(group)
            ]
            row = {
                "id": example.id,
                "task": example.task,
                "images": example.images,
                "question": example.question,
                "targets": [[target.image, *target.box] for target in example.targets],
                "completions": sorted(completions, key=lambda c: -c["reward"]),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def reference_copies(run: setup.Run, config: ConfigDict) -> nnx.State | None:
    """What the reference policy has besides the frozen parameters: where this stage started.

    So it is when the run resumes, too. A copy, as it is computed with, since the policy's own
    arrays are given away at every update. None under LoRA: the frozen base is the reference.
    """
    if lora.is_adapters(run.state.params):
        return None
    trained, _ = split_trainable(run.model.params, tuple(config.freeze))
    dtypes = computed_dtypes(trained, config.model.compute_dtype)
    copy = jax.jit(lambda params: jax.tree.map(lambda p, d: jnp.array(p, d), params, dtypes))
    return copy(trained)


def train(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Runs or resumes GRPO; see `defaults.grpo` for the settings."""
    check(config, setup.use_devices(config))
    settings = config.grpo
    benchmark = load_benchmark(config)
    run = setup.start(
        config,
        workdir,
        with_response=False,
        keep=lambda example: bool(example.targets),
        updates_per_step=settings.updates,
    )
    state, frozen, graph, mesh = run.state, run.frozen, run.graph, run.mesh

    reference_graph, copies = run.model.graph, reference_copies(run, config)
    reference = frozen if copies is None else nnx.merge_state(copies, frozen)
    run = run.without_start()

    # ---- The pure functions of a step, jitted once. ----
    forbidden = forbidden_ids(run.tokenizer, run.model.config.text.vocab_size)
    options = {
        "graph": graph,
        "forbidden": forbidden,
        "config": settings,
        "chunk": config.logprob_chunk,
    }

    rollouts = Rollouts(run, config, forbidden, stop_ids(run.tokenizer))
    size = prompts_a_call(config)
    micro_batches = size // config.prompts_per_micro_batch

    rows, everywhere = sharding.by_rows(mesh), sharding.replicated(mesh)
    reward_functions = rewards.resolve(settings.rewards)

    @functools.partial(jax.jit, out_shardings=(everywhere, rows, everywhere))
    def judge(answers, targets):
        reward, parts = rewards.total(reward_functions, answers, targets)
        advantage = group_advantages(
            reward, scale=settings.advantage_scale, epsilon=settings.advantage_epsilon
        )
        return {"reward": reward, **parts}, advantage, zero_spread(reward)

    reference_of = with_resident(
        functools.partial(reference_values, **options | {"graph": reference_graph})
    )
    reference_head = None
    if settings.beta and settings.kl == "exact":
        reference_head = jax.jit(lambda p: nnx.merge(reference_graph, p).head())(reference)
    gradients = make_gradients(run.layout, **options)
    apply = make_apply(run.optimizer, run.layout)
    rate = schedule(config.optimizer, config.num_steps * settings.updates)
    metrics = Metrics(
        workdir,
        step=run.first_step,
        num_steps=config.num_steps,
        name="grpo",
        write=processes.is_first(),
    )
    life = Lifecycle(run, config)
    held_out = HeldOut(run, config, workdir, benchmark, write=processes.is_first())

    for step in life.steps():
        with metrics.phase("data"):
            pairs = next(run.data)
            calls = np.arange(len(pairs)).reshape(-1, size // run.share.count)
            items = [item for _, item in pairs]
            batches = life.collate(items, calls[..., None].tolist()).parts
        if life.stopping:
            break

        with jax.set_mesh(mesh), jax.transfer_guard("disallow"):
            # ---- Completions; parsed and rewarded while the next are sampled. ----
            experiences, judged, all_texts, lengths = [], [], [], []
            sampled = rollouts.sample(state, frozen, copies, step, batches)
            for examples in ([pairs[i][0] for i in call] for call in calls):
                with metrics.phase("rollout"):
                    prompt, images, rollout, length = next(sampled)
                    length = jax.device_get(length)
                    tokens, mask = map(sharding.local_rows, (rollout.tokens, rollout.mask))
                with metrics.phase("reward"):
                    texts = decode(run.tokenizer, tokens, mask)
                    answers = answer_arrays(texts, examples, mask, settings.max_objects)
                    targets = target_arrays(examples, settings.group, settings.max_objects)
                    parts, advantages, equal = judge(*sharding.place_rows((answers, targets), mesh))
                rollout = shorten(rollout, int(length.max()), tuple(settings.completion_lengths))
                experience = Experience(prompt, images, rollout, advantages, None)
                experiences += sharding.split_rows(experience, micro_batches, mesh)
                judged.append((parts, equal))
                all_texts.append(texts)
                lengths.append(length)
            sampled.close()  # and with it go the weights that it sampled with

            # ---- What the reference policy says. ----
            if settings.beta:
                with metrics.phase("reference"):
                    policy = state.params, state.opt_state
                    for i, given in enumerate(experiences):
                        values = reference_of(policy, reference, *given[:3])
                        experiences[i] = given._replace(reference=values)

            # ---- Updates on what was sampled. ----
            with metrics.phase("update"):
                lengths = np.concatenate(lengths)
                totals = sharding.place_everywhere(
                    Totals(np.float32(lengths.size), np.float32(lengths.sum())), mesh
                )
                for update in range(settings.updates):
                    total = None
                    for experience in experiences:
                        given = state.params, frozen, experience, totals, reference_head
                        total = gradients(total, (state.opt_state, copies), *given)
                    (step_loss, statistics), grads = total
                    state, norm = apply(state, grads, step_loss)
                    if update == 0:  # later updates are off-policy by design
                        first = statistics
                step_loss, first, norm, judged = jax.device_get((step_loss, first, norm, judged))
                skipped, in_a_row = jax.device_get((state.skipped, state.skipped_in_a_row))
        # The optimizer counts updates; the run counts rollouts.
        state = state._replace(step=sharding.place_everywhere(np.int32(step + 1), mesh))

        parts = {name: np.concatenate([p[name] for p, _ in judged]) for name in judged[0][0]}
        if (
            settings.log_groups_every
            and step % settings.log_groups_every == 0
            and processes.is_first()
        ):
            mine = sharding.local_row_numbers(size, mesh)
            own = {k: np.concatenate([p[k][mine] for p, _ in judged]) for k in parts}
            advantages = group_advantages(
                own["reward"], scale=settings.advantage_scale, epsilon=settings.advantage_epsilon
            )
            own["advantage"] = np.asarray(advantages)
            write_groups(
                workdir / "groups" / f"step_{step + 1:06d}.jsonl",
                [example for example, _ in pairs],
                sum(all_texts, []),
                own,
                settings.log_groups,
            )
        scalars = {f"reward_{name}": v.mean() for name, v in parts.items() if name != "reward"}
        scores = {}
        if held_out.due(step + 1):
            with metrics.phase("evaluate"):
                scores = held_out.evaluate(step + 1, state, frozen, copies)
        metrics.write(
            step + 1,
            {
                "loss": step_loss,
                "reward": parts["reward"].mean(),
                **scalars,
                **first,
                "completion_length": lengths.mean(),
                "cut_fraction": (lengths == settings.max_tokens).mean(),
                "zero_spread_fraction": np.concatenate([equal for _, equal in judged]).mean(),
                "grad_norm": norm,
                "learning_rate": float(np.asarray(rate(step * settings.updates - skipped))),
                "rejected": len(run.rejected),
                "skipped": skipped,
                **scores,
            },
            shown=("reward", "kl"),
        )
        with metrics.phase("checkpoint"):  # counted towards the next step
            life.end_step(state, frozen, in_a_row, scores.get("eval_acc"))

    metrics.close()
    life.finish(state, frozen)
