"""Fields of a model's JSON files: read and checked, so that none is taken for what it can't be."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from mirg_jax.errors import CheckpointError, shorten

_MOST = 10**7  # of any size; vocabularies are below a million
_LARGEST = 1e30  # of any number; those that are computed with are float32


def section(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Returns a field that is an object; an empty one where it is missing or null.

    Raises:
      ValueError: if it is anything else.
    """
    value = raw.get(name)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{name}={_quote(value)} is not an object")
    return value or {}


def size(raw: Mapping[str, Any], name: str, default: int | None = None, *, least: int = 1) -> int:
    """Returns a field that is a size or a count.

    Args:
      raw: the fields.
      name: the field.
      default: its value where it is missing or null.
      least: its smallest value.

    Raises:
      KeyError: if it is missing and has no default.
      ValueError: if it is no such integer.
    """
    value = _value(raw, name, default)
    if type(value) is not int or not least <= value <= _MOST:
        raise ValueError(f"{name}={_quote(value)} is not an integer from {least} to {_MOST}")
    return value


def flag(raw: Mapping[str, Any], name: str) -> bool:
    """Returns a field that is true or false (or 1 or 0); false where it is missing or null.

    Raises:
      ValueError: if it is anything else, such as the text "false".
    """
    value = raw.get(name)
    if value is not None and not (type(value) in (bool, int) and value in (0, 1)):
        raise ValueError(f"{name}={_quote(value)} is neither true nor false")
    return bool(value)


def texts(raw: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Returns a field that is a list of texts; () where it is missing or null.

    Raises:
      ValueError: if it is anything else.
    """
    values = raw.get(name)
    if values is None:
        return ()
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name}={_quote(values)} is not a list of texts")
    return tuple(values)


def number(
    raw: Mapping[str, Any], name: str, default: float | None = None, *, most: float = _LARGEST
) -> float:
    """Returns a field that is a number above 0.

    Args:
      raw: the fields.
      name: the field.
      default: its value where it is missing or null.
      most: its largest value.

    Raises:
      KeyError: if it is missing and has no default.
      ValueError: if it is anything else.
    """
    value = _value(raw, name, default)
    if type(value) not in (int, float) or not 0 < value <= most:
        raise ValueError(f"{name}={_quote(value)} is not a number above 0, up to {most:g}")
    return float(value)


def sizes(raw: Mapping[str, Any], name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a field that is a list of integers of 0 or more.

    Raises:
      ValueError: if it is anything else.
    """
    values = _value(raw, name, default)
    if not isinstance(values, list | tuple) or not all(
        type(value) is int and 0 <= value <= _MOST for value in values
    ):
        raise ValueError(f"{name}={_quote(values)} is not a list of integers of 0 or more")
    return tuple(values)


def token_ids(raw: Mapping[str, Any], name: str, vocab_size: int) -> tuple[int, ...]:
    """Returns a field that is a token's ID or a list of them; () where it is missing or null.

    Args:
      raw: the fields.
      name: the field.
      vocab_size: rows of the embedding.

    Raises:
      CheckpointError: if it is anything else, or an ID has no row in the embedding.
    """
    value = raw.get(name)
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    for each in ids:
        if type(each) is not int or each < 0:
            raise CheckpointError(
                f"{name}={_quote(value)} is neither a token's ID nor a list of IDs, which are "
                "integers of 0 or more; correct the field"
            )
        if each >= vocab_size:
            raise CheckpointError(
                f"{name} is {each}, but the embedding has only vocab_size={vocab_size} rows; "
                "resize the embedding or correct the field"
            )
    return tuple(ids)


def end_tokens(folder: pathlib.Path, vocab_size: int) -> tuple[int, ...]:
    """Returns the end tokens that the generation_config.json in a model's folder names, if any.

    Raises:
      CheckpointError: if the file is damaged, or they are not token IDs of the model.
    """
    path = folder / "generation_config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("no JSON object")
        return token_ids(raw, "eos_token_id", vocab_size)
    except FileNotFoundError:
        return ()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); get it again, or delete it"
        ) from None


def _value(raw: Mapping[str, Any], name: str, default: Any) -> Any:
    value = raw.get(name)
    if value is not None:
        return value
    if default is None:
        raise KeyError(name)
    return default


def _quote(value: Any) -> str:
    return shorten(repr(value), 60)
