"""Rewards of a user's own over texts, computed on the host: "text:path/to/file.py:function"."""

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from mirg_jax.data.answers import parse
from mirg_jax.data.examples import Example
from mirg_jax.errors import RewardError
from mirg_jax.grounding.grammar import Response
from mirg_jax.rl import own_rewards
from mirg_jax.training.ahead import Ahead


class Completion(NamedTuple):
    """A completion as a reward over texts gets it.

    Attributes:
      text: what the model said, with special tokens.
      response: the same, parsed: thoughts, objects, whether the format is right.
      example: the question, its images and targets; `example.columns` has the row as its file does.
      tokens: number of tokens.
    """

    text: str
    response: Response
    example: Example
    tokens: int


# Gets completions of any number, and returns one number for each.
TextReward = Callable[[Sequence[Completion]], Sequence[float]]


class TextRewards:
    """The rewards over texts that a config names.

    Attributes:
      problem: why the last call failed, in a line; "" if it didn't.
    """

    def __init__(self, names: Iterable[str], seconds: float):
        """
        Args:
          names: names of rewards, of which those over arrays are left out.
          seconds: time that a reward may take for the completions of one call.

        Raises:
          ConfigError: if a function can't be loaded.
        """
        self.problem = ""
        self._seconds = seconds
        self._rewards: dict[str, TextReward] = {
            name: own_rewards.load_function(name) for name in names if own_rewards.is_of_texts(name)
        }

    def __call__(
        self, texts: Sequence[str], examples: Sequence[Example], lengths: Int[np.ndarray, "B G"]
    ) -> dict[str, Float[np.ndarray, "B G"]]:
        """Computes the rewards by name; those of a function that fails are NaN.

        Args:
          texts: B·G completions, grouped by prompt.
          examples: the B examples.
          lengths: the completions' numbers of tokens.
        """
        self.problem = ""
        if not self._rewards:
            return {}
        asked = [example for example in examples for _ in range(lengths.shape[1])]
        columns = texts, parse(texts, asked), asked, lengths.reshape(-1).tolist()
        given = [Completion(*each) for each in zip(*columns, strict=True)]
        found = {}
        for name, reward in self._rewards.items():
            try:
                values = _within(self._seconds, name, reward, given)
            except RewardError as error:
                self.problem = self.problem or str(error)
                values = np.full(len(given), np.nan, np.float32)
            found[name] = values.reshape(lengths.shape)
        return found


def _within(
    seconds: float, name: str, reward: TextReward, given: Sequence[Completion]
) -> Float[np.ndarray, " N"]:
    """Calls a reward in a thread, which is left to itself when it takes too long."""
    end = time.monotonic() + seconds
    called = Ahead(functools.partial(_values, name, reward, given))
    found = called.take(unless=lambda: time.monotonic() > end)
    if found is None:
        raise RewardError(
            f"rewards: {name!r} took more than {seconds:g} s for {len(given)} completions, from "
            f"{given[0].example.source} on; make it faster or raise grpo.text_reward_seconds"
        )
    return found


def _values(name: str, reward: TextReward, given: Sequence[Completion]) -> Float[np.ndarray, " N"]:
    try:
        values = np.asarray(reward(given), np.float32)
    except BaseException as error:
        raise RewardError(_blame(name, reward, given, error)) from error
    if values.shape != (len(given),):
        raise RewardError(
            f"rewards: {name!r} returns an array of {list(values.shape)} for {len(given)} "
            "completions; return a number for each"
        )
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise RewardError(not_finite(name, float(values[bad[0]]), given[bad[0]].example))
    return values


def not_finite(name: str, value: float, example: Example) -> str:
    """Says in a line that a reward is no finite number."""
    return (
        f"rewards: {name!r} is {value:g} for a completion of {example.source}; "
        "return a finite number for every completion"
    )


def _blame(name: str, reward: TextReward, given: Sequence[Completion], error: BaseException) -> str:
    """Says in a line how a reward fails, and for which row, if it fails for one alone."""
    where = f"{len(given)} completions, from {given[0].example.source} on"
    for one in given:
        try:
            reward([one])
        except BaseException as found:
            error, where = found, f"a completion of {one.example.source}"
            break
    return f"rewards: {name!r} fails for {where} with {own_rewards.line_of(error)}"
