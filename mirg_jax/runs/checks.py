"""Checks of a run's settings that need neither devices nor data nor the model.

The settings call them when they are created, also by `dataclasses.replace`. Names in messages are
those of the config.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mirg_jax.data.prompts import FORBIDDEN, PromptStyle
from mirg_jax.errors import ConfigError
from mirg_jax.models.flash import ENGINES
from mirg_jax.models.layers import REMAT
from mirg_jax.rl import rewards
from mirg_jax.rl.advantages import SCALES
from mirg_jax.rl.objective import OBJECTIVES
from mirg_jax.rl.selection import ORDERS

if TYPE_CHECKING:
    from mirg_jax.runs import settings as s

DTYPES = ("float32", "bfloat16", "float16")
MODULES = ("visual", "embed_tokens", "decoder", "lm_head")
_COLDEST = 1e-6  # logits over less leave the range of float32
_MAX_SEED = 2**63 - 1  # JAX takes no more


def one_of(field: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raises ConfigError if a value is none of those allowed."""
    if value not in allowed:
        raise ConfigError(f"{field}={value!r} is none of {', '.join(map(str, allowed))}")


def at_least(least: float, values: Mapping[str, float]) -> None:
    """Raises ConfigError if a value is below a number."""
    _all("{} or more", lambda value: value >= least, values, least)


def above(bound: float, values: Mapping[str, float]) -> None:
    """Raises ConfigError if a value is not above a number."""
    _all("above {}", lambda value: value > bound, values, bound)


def fractions(values: Mapping[str, float]) -> None:
    """Raises ConfigError if a value is not from 0 to 1."""
    _all("from 0 to 1", lambda value: 0 <= value <= 1, values)


def _all(
    what: str, good: Callable[[float], bool], values: Mapping[str, float], bound: float = 0
) -> None:
    for field, value in values.items():
        if not good(value):  # nor is NaN
            raise ConfigError(f"{field}={value:g} must be {what.format(f'{bound:g}')}")


def ascending(field: str, sizes: Sequence[int]) -> None:
    """Raises ConfigError if there are no sizes, or they are not positive and in ascending order."""
    if not sizes or sizes[0] < 1 or any(a > b for a, b in itertools.pairwise(sizes)):
        raise ConfigError(f"{field}={tuple(sizes)}: give sizes of 1 or more in ascending order")


def model(settings: "s.ModelSettings") -> None:
    """Checks the model's settings."""
    if not settings.path:
        raise ConfigError("model.path is empty: give a Hugging Face folder or hub name")
    one_of("model.remat", settings.remat, REMAT)
    one_of("model.attention", settings.attention, ("auto", "xla", *ENGINES))


def data(settings: "s.DataSettings") -> None:
    """Checks the data's settings."""
    for name in ("lengths", "slots", "patches"):
        ascending(f"data.shapes.{name}", getattr(settings.shapes, name))
    at_least(1, {"data.min_pixels": settings.min_pixels})
    at_least(-1, {"data.threads": settings.threads})
    if settings.max_pixels < settings.min_pixels:
        raise ConfigError(
            f"data.max_pixels={settings.max_pixels} is below data.min_pixels={settings.min_pixels}"
        )
    fractions({"data.direct": settings.direct})
    bounds = settings.difficulty
    if bounds and (len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] <= 1):
        raise ConfigError(f"data.difficulty={bounds}: give two numbers from 0 to 1, ascending")
    if settings.gain and (len(settings.gain) != 2 or min(settings.gain) < 0):
        raise ConfigError(f"data.gain={settings.gain}: give two numbers of 0 or more")
    if bool(settings.ratings) != bool(bounds or settings.gain):
        raise ConfigError(
            f"data.ratings={settings.ratings!r} goes with data.difficulty or data.gain; set both, "
            "or neither"
        )


def prompt(style: PromptStyle) -> None:
    """Checks the text around questions."""
    try:
        style.image_label.format(n=1)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError):
        raise ConfigError(
            f"prompt.image_label={style.image_label!r}: only {{n}}, the image's number, may stand "
            "in braces; write {{ and }} for braces themselves"
        ) from None
    for field in ("system", "image_label", "instruction", "direct_instruction"):
        for token in FORBIDDEN:
            if token in getattr(style, field):
                raise ConfigError(f"prompt.{field} contains the control token {token}; remove it")


def optimizer(settings: "s.OptimizerSettings") -> None:
    """Checks the optimizer's settings."""
    one_of("optimizer.name", settings.name, ("adamw", "muon"))
    one_of("optimizer.schedule", settings.schedule, ("cosine", "constant"))
    names = ("learning_rate", "weight_decay", "eps", "clip_norm", "adam_ratio", "final_ratio")
    at_least(0, {f"optimizer.{name}": getattr(settings, name) for name in names})
    fractions({f"optimizer.{name}": getattr(settings, name) for name in ("warmup_ratio",)})
    for name in ("b1", "b2"):
        value = getattr(settings, name)
        if not 0 <= value < 1:
            raise ConfigError(f"optimizer.{name}={value:g} must be from 0 to below 1")


def devices(settings: "s.DeviceSettings") -> None:
    """Checks mesh sizes."""
    for name in ("data", "fsdp", "tensor"):
        if getattr(settings, name) != -1:
            at_least(1, {f"mesh.{name}": getattr(settings, name)})
    at_least(1, {"sampling.tensor": settings.sampling_tensor})
    at_least(0, {"cpu_devices": settings.cpu_devices})


def checkpoint(settings: "s.CheckpointSettings") -> None:
    """Checks how often checkpoints are saved, and how many are kept."""
    names = ("every", "keep", "minutes")
    at_least(0, {f"checkpoint.{name}": getattr(settings, name) for name in names})


def evaluation(settings: "s.EvaluationSettings") -> None:
    """Checks how answers are generated and when held-out rows are evaluated."""
    one_of("evaluation.coordinates", settings.coordinates, ("grid", "pixels", "thousandths"))
    at_least(1, {"evaluation.max_tokens": settings.max_tokens})
    names = ("batch_size", "every", "limit")
    at_least(0, {f"evaluation.{name}": getattr(settings, name) for name in names})


def grpo(settings: "s.GrpoSettings") -> None:
    """Checks GRPO's settings, apart from those that depend on the batch."""
    one_of("grpo.kl", settings.kl, ("k1", "k2", "k3", "exact"))
    one_of("grpo.normalisation", settings.normalisation, ("sequence", "token", "constant"))
    one_of("grpo.objective", settings.objective, OBJECTIVES)
    one_of("grpo.advantage_scale", settings.advantage_scale, SCALES)
    if settings.group < 2:
        raise ConfigError("grpo.group must be at least 2: advantages compare completions")
    names = ("updates", "max_tokens", "max_objects", "pool", "max_rounds", "mini_batches")
    at_least(1, {f"grpo.{name}": getattr(settings, name) for name in names})
    names = ("beta", "clip_low", "clip_high", "advantage_epsilon", "log_groups_every", "log_groups")
    names += ("importance_cap",)
    at_least(0, {f"grpo.{name}": getattr(settings, name) for name in names})
    if 0 < settings.importance_cap < 1:
        raise ConfigError(
            f"grpo.importance_cap={settings.importance_cap:g} would lower all weights, which are "
            "about 1; give 1 or more, such as 2.0, or 0 for none"
        )
    names = ("tau_positive", "tau_negative", "kl_clamp", "top_p", "text_reward_seconds")
    above(0, {f"grpo.{name}": getattr(settings, name) for name in names})
    if settings.dual_clip:
        above(1, {"grpo.dual_clip": settings.dual_clip})
        if settings.objective != "ppo":
            raise ConfigError(
                f"grpo.dual_clip={settings.dual_clip:g} is for grpo.objective='ppo' only; set it "
                f"to 0 for {settings.objective!r}"
            )
    at_least(0, {"sampling.prompts": settings.prompts, "sampling.slots": settings.slots})
    fractions({"grpo.top_p": settings.top_p})
    ascending("grpo.completion_lengths", settings.completion_lengths)
    if settings.completion_lengths[-1] < settings.max_tokens:
        raise ConfigError("the last of grpo.completion_lengths must be grpo.max_tokens or more")
    if not settings.temperature > 0:
        raise ConfigError(
            "grpo.temperature must be above 0: equal completions have no advantages to learn from"
        )
    at_least(_COLDEST, {"grpo.temperature": settings.temperature})
    _selection(settings)
    _rewards(settings)


def _selection(settings: "s.GrpoSettings") -> None:
    one_of("grpo.order", settings.order, ORDERS)
    at_least(0, {"grpo.gate": min(settings.gate, default=0)})
    if settings.pool > 1 and not settings.gate and settings.order == "sampled":
        raise ConfigError(
            f"grpo.pool={settings.pool}: all groups but the first batch_size would be thrown away; "
            "set grpo.gate or grpo.order='reward', or raise batch_size instead"
        )
    if settings.max_rounds > 1 and not settings.gate:
        raise ConfigError(
            f"grpo.max_rounds={settings.max_rounds} is for steps that grpo.gate leaves short; set "
            "it, as to (0.0,), or grpo.max_rounds=1"
        )


def _rewards(settings: "s.GrpoSettings") -> None:
    if not settings.rewards:
        raise ConfigError("grpo.rewards is empty: give at least one reward and its weight")
    rewards.check_names(settings.rewards)
    for name, weight in settings.rewards.items():
        if not math.isfinite(weight):
            raise ConfigError(f"grpo.rewards: the weight of {name!r}, {weight}, must be finite")
    if not any(settings.rewards.values()):
        raise ConfigError(
            f"grpo.rewards: all weights are 0 ({', '.join(settings.rewards)}), so nothing would be "
            "learned; give one another weight"
        )
    fractions({"grpo.overlong_buffer": settings.overlong_buffer})
    above(0, {"grpo.overlong_buffer": settings.overlong_buffer})
    bounds = settings.iou_thresholds
    if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] <= 1:
        raise ConfigError(f"grpo.iou_thresholds={bounds}: give two numbers from 0 to 1, ascending")


def whole(settings: "s.Settings") -> None:
    """Checks a run's settings together; their parts are checked already."""
    if not 0 <= settings.seed <= _MAX_SEED:
        raise ConfigError(f"seed={settings.seed} must be from 0 to {_MAX_SEED}")
    names = ("num_steps", "logprob_chunk", "max_skipped")
    at_least(0, {name: getattr(settings, name) for name in names})
    prompt(settings.prompt)
    if settings.data.direct and settings.prompt.direct_instruction == settings.prompt.instruction:
        raise ConfigError(
            f"data.direct={settings.data.direct:g}: prompt.direct_instruction and "
            "prompt.instruction are the same, so no question says which form it asks for"
        )
    for name in settings.freeze:
        one_of("freeze", name, MODULES)
    if settings.profile:
        ascending("profile", settings.profile)
        if len(settings.profile) != 2:
            raise ConfigError(f"profile={settings.profile}: give the first and the last step")
    if settings.stage == "inference":
        return
    at_least(1, {name: getattr(settings, name) for name in ("batch_size",)})
    at_least(1, {settings.micro_batch_name: settings.micro_batch})
    if settings.grpo is None:
        return
    if settings.batch_size % settings.micro_batch:
        raise ConfigError(
            f"batch_size={settings.batch_size} must be a multiple of "
            f"prompts_per_micro_batch={settings.micro_batch}"
        )
    if settings.batch_size % (settings.grpo.mini_batches * settings.micro_batch):
        raise ConfigError(
            f"batch_size={settings.batch_size} must be a multiple of "
            f"grpo.mini_batches={settings.grpo.mini_batches} times "
            f"prompts_per_micro_batch={settings.micro_batch}"
        )
    prompts = settings.sampled_prompts
    if prompts % settings.micro_batch or settings.examples_at_once % prompts:
        pool = settings.grpo.pool
        raise ConfigError(
            f"sampling.prompts={prompts} must be a multiple of "
            f"prompts_per_micro_batch={settings.micro_batch} and divide "
            f"batch_size={settings.batch_size}{f' times grpo.pool={pool}' if pool > 1 else ''}"
        )


def rows(
    settings: "s.Settings", *, row_parts: int, sampling_parts: int, shares: int, processes: int
) -> None:
    """Checks that a training run's batches can be divided evenly over devices and processes.

    Args:
      settings: the settings.
      row_parts: number of row shards on the training mesh.
      sampling_parts: number of row shards on the sampling mesh.
      shares: number of shares that the data is divided into among processes.
      processes: number of processes.

    Raises:
      ConfigError: if they can't.
    """
    micro_batch = settings.micro_batch
    if settings.batch_size % shares:
        raise ConfigError(
            f"batch_size={settings.batch_size} can't be divided evenly among the {shares} shares "
            "that processes read; make it a multiple of that number"
        )
    if settings.stage == "sft" and processes > 1 and micro_batch % row_parts:
        raise ConfigError(
            f"rows_per_micro_batch={micro_batch} can't be divided evenly over {row_parts} row "
            "shards of several processes; make it a multiple of that number, or set config.mesh"
        )
    if settings.grpo is None:
        return
    if micro_batch % row_parts:
        raise ConfigError(
            f"prompts_per_micro_batch={micro_batch} can't be divided evenly over {row_parts} row "
            "shards; make it a multiple of that number, or set config.mesh"
        )
    prompts, slots = settings.sampled_prompts, settings.grpo.slots
    if prompts % sampling_parts or slots % sampling_parts:
        raise ConfigError(
            f"sampling.prompts={prompts} and sampling.slots={slots} must be multiples of "
            f"{sampling_parts}, the number of device groups that sample separately; or set "
            "config.sampling.tensor"
        )
