"""Checks that settings are all there and of the types of their defaults.

Flags and assignments to a `ConfigDict` are checked by it already, apart from None, elements of
tuples, and sections that are replaced as a whole. A run's config.json is not checked at all.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mirg_jax.errors import ConfigError, shorten

_KINDS = {bool: "True or False", int: "an integer", float: "a number", str: "text"}
_FREE = ("grpo.rewards",)  # sections with any names
# Runs made before have no such settings.
_NEWER = (
    "data.follow_links",
    "data.apply_exif",
    "data.image_cache",
    "logprob_chunk",
    "checkpoint.minutes",
    "profile",
)


def check(given: Mapping[str, Any], usual: Mapping[str, Any], section: str = "") -> None:
    """Checks settings against the defaults of their stage.

    Fields beside the sections that the defaults lack are not looked at.

    Args:
      given: the settings.
      usual: the defaults.
      section: name of the section that both are, with a dot at its end; "" for the whole.

    Raises:
      ConfigError: if a setting is missing, unknown, None, or of another type than its default.
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
        kind = type(default[0]) if default else int  # steps
        if not isinstance(value, list | tuple) or not all(_is(each, kind) for each in value):
            raise _misfit(field, value, f"a list, each of it {_KINDS[kind]}")
    elif not _is(value, kind := type(default)):
        raise _misfit(field, value, _KINDS[kind])


def _is(value: Any, kind: type) -> bool:
    """Returns whether a value is of a type; an integer is a number, a truth value is neither."""
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind


def _misfit(field: str, value: Any, wanted: str) -> ConfigError:
    return ConfigError(f"{field}={shorten(repr(value), 100)} must be {wanted}")
