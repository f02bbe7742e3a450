"""Rewards of a user's own, by `path/to/file.py:function` or `module:function`.

Those over arrays are computed on the devices, here; those over texts, with "text:" before their
name, on the host (`training/text_rewards.py`).
"""

import importlib
import importlib.machinery
import importlib.util
import pathlib
import types
from collections.abc import Callable

import jax.numpy as jnp

from mirg_jax.errors import ConfigError, shorten

_TEXT = "text:"


def is_of_texts(name: str) -> bool:
    """Whether a reward's name is of one over texts."""
    return name.startswith(_TEXT)


def load_function(name: str) -> Callable:
    """Loads a user's function.

    Args:
      name: `path/to/file.py:function`, relative to the working directory, or `module:function`;
        each may have "text:" before it.

    Raises:
      ConfigError: if there is no such file, module or function, or loading fails.
    """
    where, _, attribute = name.removeprefix(_TEXT).rpartition(":")
    module = _of_file(name, pathlib.Path(where)) if where.endswith(".py") else _module(name, where)
    function = getattr(module, attribute, None)
    if not callable(function):
        what = "is no function" if hasattr(module, attribute) else "is not there"
        raise ConfigError(f"rewards: {name!r}: {attribute!r} {what} in {where}; check its name")
    return function


def load(name: str) -> Callable:
    """Loads a reward over arrays.

    Args:
      name: as for `load_function`, without "text:".

    Returns:
      The function, which checks what is returned: one number for each completion.

    Raises:
      ConfigError: as `load_function`.
    """
    function = load_function(name)

    def reward(answers, targets):
        shape = answers.format_ok.shape
        try:
            value = jnp.asarray(function(answers, targets))
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"rewards: {name!r} fails with {line_of(error)} (it gets arrays of numbers; for "
                f"one over texts write {_TEXT}{name})"
            ) from error
        if value.shape != shape or jnp.issubdtype(value.dtype, jnp.complexfloating):
            raise ConfigError(
                f"rewards: {name!r} returns {value.dtype}{list(value.shape)}; return one real "
                f"number for each completion, {list(shape)}"
            )
        return value.astype(jnp.float32)

    return reward


def file_of(name: str) -> pathlib.Path | None:
    """Returns the file that a reward function is loaded from; None if it has none.

    Args:
      name: as for `load`; a name of ours has no file.
    """
    where, sign, _ = name.removeprefix(_TEXT).rpartition(":")
    if not sign:
        return None
    if where.endswith(".py"):
        return pathlib.Path(where)
    found = importlib.util.find_spec(where)
    return pathlib.Path(found.origin) if found and found.has_location and found.origin else None


def _of_file(name: str, path: pathlib.Path) -> types.ModuleType:
    if not path.is_file():
        raise ConfigError(
            f"rewards: {name!r}: there is no file {path}; paths start at the folder "
            "that the run is started in"
        )
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        importlib.machinery.SourceFileLoader(path.stem, str(path)).exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"rewards: {name!r} can't be loaded: {line_of(error)}") from error
    return module


def _module(name: str, where: str) -> types.ModuleType:
    try:
        return importlib.import_module(where)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"rewards: {name!r} is not an importable module:function: {line_of(error)}"
        ) from error


def line_of(error: BaseException) -> str:
    """Returns an exception's kind and message in one line."""
    return shorten(" ".join(f"{type(error).__name__}: {error}".split()), 300)
