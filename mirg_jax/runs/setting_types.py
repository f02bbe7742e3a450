"""Checks that settings are all there, of the types of their defaults, and no odd numbers.

Flags and assignments to a `ConfigDict` are checked by it already, apart from None, elements of
tuples, and sections that are replaced as a whole. A run's config.json is not checked at all.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mirg_jax.errors import ConfigError, shorten

_KINDS = {bool: "True or False", int: "an integer", float: "a number", str: "text"}
_FREE = ("grpo.rewards",)  # sections with any names
_MOST = 2**31 - 1  # of an integer: a count, or the size of an array
_LARGEST = 3e38  # of a number: of about float32's range
_SEED = "seed"  # which may be larger, and is checked where it is used
# Bounds that infinity switches off.
_MAY_BE_INFINITE = ("optimizer.clip_norm", "grpo.kl_clamp", "grpo.clip_high")
# Of lists that are empty by default; of others steps.
_OF_EMPTY = {
    "data.difficulty": float,
    "data.gain": float,
    "grpo.more_rewards": str,
    "grpo.gate": float,
}
_PASSED_ON = ("extra_body",)  # to servers, unread
# Runs made before have no such settings.
_NEWER = (
    "data.follow_links",
    "data.apply_exif",
    "data.image_cache",
    "data.direct",
    "data.ratings",
    "data.difficulty",
    "data.gain",
    "prompt.direct_instruction",
    "evaluation.direct",
    "prompt.thinking",
    "logprob_chunk",
    "checkpoint.minutes",
    "profile",
    "wandb",
    "grpo.difficulty_weight",
    "grpo.objective",
    "grpo.dual_clip",
    "grpo.tau_positive",
    "grpo.tau_negative",
    "grpo.mask_cut",
    "grpo.more_rewards",
    "grpo.overlong_buffer",
    "grpo.iou_thresholds",
    "grpo.pool",
    "grpo.gate",
    "grpo.max_rounds",
    "grpo.order",
    "grpo.mini_batches",
    "grpo.text_reward_seconds",
)


def check(given: Mapping[str, Any], usual: Mapping[str, Any], section: str = "") -> None:
    """Checks settings against the defaults of their stage.

    Fields beside the sections that the defaults lack are not looked at.

    Args:
      given: the settings.
      usual: the defaults.
      section: name of the section that both are, with a dot at its end; "" for the whole.

    Raises:
      ConfigError: if a setting is missing, unknown, None, of another type than its default, or a
        number that is infinite, NaN or far beyond any use.
    """
    for name, default in usual.items():
        field = section + name
        if name in given:
            _check_value(field, given[name], default)
        elif field not in _NEWER:
            raise ConfigError(f"{field} is missing; begin with a recipe of mirg_jax.defaults")
    if section and (unknown := given.keys() - usual.keys()):
        raise ConfigError(
            f"{section}{min(unknown, key=str)} is no setting; those there are {', '.join(usual)}"
        )


def check_none(given: Mapping[str, Any], section: str = "") -> None:
    """Raises ConfigError if a setting is None, or a list or tuple with None in it."""
    for name, value in given.items():
        if isinstance(value, Mapping):
            check_none(value, f"{section}{name}.")
        elif value is None or (isinstance(value, list | tuple) and None in value):
            raise ConfigError(f"{section}{name}={value!r} is not a value; set one, or leave it out")


def check_numbers(given: Mapping[str, Any], section: str = "") -> None:
    """Raises ConfigError if a number among settings is infinite, NaN or far beyond any use."""
    for name, value in given.items():
        if name in _PASSED_ON:
            continue
        if isinstance(value, Mapping):
            check_numbers(value, f"{section}{name}.")
            continue
        for each in value if isinstance(value, list | tuple) else (value,):
            if type(each) in (int, float):
                _check_number(section + name, each, type(each))


def _check_number(field: str, value: float, kind: type) -> None:
    if kind is int:
        if abs(value) > _MOST and field.rpartition(".")[2] != _SEED:
            raise ConfigError(
                f"{field}={shorten(repr(value), 40)} must lie between {-_MOST} and {_MOST}"
            )
    elif field in _MAY_BE_INFINITE and value == math.inf:
        pass
    elif not abs(value) <= _LARGEST:  # nor is NaN
        raise ConfigError(f"{field}={shorten(repr(value), 40)} must be a finite number")


def _check_value(field: str, value: Any, default: Any) -> None:
    if isinstance(default, Mapping):
        if not isinstance(value, Mapping):
            raise _misfit(field, value, "a section of settings")
        if field in _FREE:
            for name, each in value.items():
                _check_value(f"{field}.{name}", each, next(iter(default.values())))
        else:
            check(value, default, f"{field}.")
    elif isinstance(default, Sequence) and not isinstance(default, str):
        kind = type(default[0]) if default else _OF_EMPTY.get(field, int)
        if not isinstance(value, list | tuple) or not all(_is(each, kind) for each in value):
            raise _misfit(field, value, f"a list, each of it {_KINDS[kind]}")
        for each in value if kind in (int, float) else ():
            _check_number(field, each, kind)
    elif not _is(value, kind := type(default)):
        raise _misfit(field, value, _KINDS[kind])
    elif kind in (int, float):
        _check_number(field, value, kind)


def _is(value: Any, kind: type) -> bool:
    """Returns whether a value is of a type; an integer is a number, a truth value is neither."""
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind


def _misfit(field: str, value: Any, wanted: str) -> ConfigError:
    return ConfigError(f"{field}={shorten(repr(value), 100)} must be {wanted}")
