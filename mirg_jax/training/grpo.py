"""Image-aware GRPO (the paper's stage 2): sample groups, reward them by rule, update.

Each step: prompts → rollout → parsed answers → rewards → advantages → loss. All mathematics is in
`mirg_jax.rl`; this file is the loop.
"""

import functools
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from mirg_jax import processes, sharding
from mirg_jax.data.examples import Example
from mirg_jax.errors import ConfigError
from mirg_jax.rl import objective, rewards
from mirg_jax.rl.logprobs import exact_kl, token_logprobs
from mirg_jax.sampling.sampler import (
    SamplingConfig,
    forbidden_ids,
    make_sampler,
    sample_keys,
    stop_ids,
)
from mirg_jax.training import setup
from mirg_jax.training.answers import answer_arrays, decode, target_arrays
from mirg_jax.training.lifecycle import Lifecycle
from mirg_jax.training.metrics import Metrics
from mirg_jax.training.state import add, apply_gradients, schedule
from mirg_jax.types import Images, Rollout, Text


class Experience(NamedTuple):
    """What the update needs of one micro-batch of prompts and their sampled groups."""

    prompt: Text
    images: Images
    rollout: Rollout
    advantages: Float[Array, "B G"]
    reference: Any  # log-probs [B, G, L] of π_ref; hidden states [B, G, L, M] for the exact KL


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


def reference_values(
    params: nnx.State,
    prompt: Text,
    images: Images,
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
    if config.prompts_per_micro_batch % sharding.row_parts(mesh):
        raise ConfigError(
            f"prompts_per_micro_batch={config.prompts_per_micro_batch} can't be divided over "
            f"{sharding.row_parts(mesh)} devices; make it a multiple, or set config.mesh"
        )
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


def train(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Runs or resumes GRPO; see `defaults.grpo` for the settings."""
    check(config, setup.use_devices(config))
    settings = config.grpo
    run = setup.start(
        config,
        workdir,
        with_response=False,
        keep=lambda example: bool(example.targets),
        updates_per_step=settings.updates,
    )
    state, frozen, graph, mesh = run.state, run.frozen, run.model.graph, run.mesh

    # The reference is where this stage started, also when the run resumes. It is a copy, since
    # the policy's own buffers are donated to every update.
    reference = jax.tree.map(jnp.copy, run.model.params)

    # ---- The pure functions of a step, jitted once. ----
    forbidden = forbidden_ids(run.tokenizer, run.model.config.text.vocab_size)
    sampling = SamplingConfig(
        group=settings.group,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        stop_tokens=stop_ids(run.tokenizer),
    )
    options = {
        "graph": graph,
        "forbidden": forbidden,
        "config": settings,
        "chunk": config.logprob_chunk,
    }

    sample = make_sampler(graph, mesh, forbidden, sampling)

    rows, everywhere = sharding.by_rows(mesh), sharding.replicated(mesh)

    @functools.partial(jax.jit, out_shardings=(rows, everywhere))
    def rollout_of(params, frozen, key, step, numbers, prompt, images):
        """The rollout, and the lengths of all completions at every process."""
        keys = jax.random.fold_in(jax.random.wrap_key_data(key), step)
        keys = sample_keys(keys, numbers, settings.group)
        weights = nnx.merge_state(params, frozen)
        rollout = sample(weights, prompt, images, keys)
        return rollout, rollout.mask.sum(-1)

    reward_functions = rewards.resolve(settings.rewards)

    @functools.partial(jax.jit, out_shardings=(everywhere, rows, everywhere))
    def judge(answers, targets):
        reward, parts = rewards.total(reward_functions, answers, targets)
        advantage = objective.advantages(
            reward, scale=settings.advantage_scale, epsilon=settings.advantage_epsilon
        )
        return {"reward": reward, **parts}, advantage, objective.zero_spread(reward)

    reference_of = jax.jit(functools.partial(reference_values, **options))
    reference_head = None
    if settings.beta and settings.kl == "exact":
        reference_head = jax.jit(lambda p: nnx.merge(graph, p).head())(reference)
    gradients = jax.jit(jax.value_and_grad(functools.partial(loss, **options), has_aux=True))
    accumulate = jax.jit(add, donate_argnums=0)
    apply = jax.jit(functools.partial(apply_gradients, optimizer=run.optimizer), donate_argnums=0)
    rate = schedule(config.optimizer, config.num_steps * settings.updates)
    metrics = Metrics(
        workdir,
        step=run.first_step,
        num_steps=config.num_steps,
        name="grpo",
        write=processes.is_first(),
    )
    life = Lifecycle(run, config)

    for step in life.steps():
        with metrics.phase("data"):
            pairs = next(run.data)
            size = config.prompts_per_micro_batch // run.share.count
            chunks = [pairs[i : i + size] for i in range(0, len(pairs), size)]
            items = [item for _, item in pairs]
            prompts = life.collate(
                items, [[[i + j] for j in range(size)] for i in range(0, len(pairs), size)]
            ).parts
        if life.stopping:
            break

        with jax.transfer_guard("disallow"):
            # ---- Rollout, parsed answers, rewards, advantages. ----
            experiences, judged, all_texts, lengths = [], [], [], []
            for number, (chunk, batch) in enumerate(zip(chunks, prompts, strict=True)):
                examples = [example for example, _ in chunk]
                with metrics.phase("rollout"):
                    prompt, images = sharding.place_rows((batch.text, batch.images), mesh)
                    at = sharding.place_everywhere(np.int32(step), mesh)
                    # Of the step's prompts, this share has every so-manieth.
                    numbers = np.arange(number * size, (number + 1) * size, dtype=np.int32)
                    numbers = run.share.index + run.share.count * numbers
                    numbers = sharding.place_rows(numbers, mesh)
                    rollout, length = rollout_of(
                        state.params, frozen, state.key, at, numbers, prompt, images
                    )
                    tokens, mask = map(sharding.local_rows, (rollout.tokens, rollout.mask))
                    length = jax.device_get(length)
                with metrics.phase("reward"):
                    texts = decode(run.tokenizer, tokens, mask)
                    answers = answer_arrays(texts, examples, mask, settings.max_objects)
                    targets = target_arrays(examples, settings.group, settings.max_objects)
                    parts, advantages, equal = judge(*sharding.place_rows((answers, targets), mesh))
                with metrics.phase("reference"):
                    rollout = shorten(
                        rollout, int(length.max()), tuple(settings.completion_lengths)
                    )
                    values = None
                    if settings.beta:
                        values = reference_of(reference, prompt, images, rollout)
                experiences.append(Experience(prompt, images, rollout, advantages, values))
                judged.append((parts, equal))
                all_texts.append(texts)
                lengths.append(length)

            # ---- Updates on what was sampled. ----
            with metrics.phase("update"):
                lengths = np.concatenate(lengths)
                totals = sharding.place_everywhere(
                    Totals(np.float32(lengths.size), np.float32(lengths.sum())), mesh
                )
                for update in range(settings.updates):
                    total = None
                    for experience in experiences:
                        part = gradients(state.params, frozen, experience, totals, reference_head)
                        total = part if total is None else accumulate(total, part)
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
            mine = sharding.local_row_numbers(config.prompts_per_micro_batch, mesh)
            own = {k: np.concatenate([p[k][mine] for p, _ in judged]) for k in parts}
            write_groups(
                workdir / "groups" / f"step_{step + 1:06d}.jsonl",
                [example for example, _ in pairs],
                sum(all_texts, []),
                own,
                settings.log_groups,
            )
        scalars = {f"reward_{name}": v.mean() for name, v in parts.items() if name != "reward"}
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
            },
            shown=("reward", "kl"),
        )
        with metrics.phase("checkpoint"):  # counted towards the next step
            life.end_step(state, frozen, in_a_row)

    metrics.close()
    life.finish(state, frozen)
