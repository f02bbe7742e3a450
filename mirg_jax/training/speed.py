"""How fast a run is, what its devices hold, and warnings of what wastes them.

MFU is the model's operations by formula (`models/flops.py`; what rematerialisation computes again
isn't counted) over the bfloat16 peak of all devices.
"""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from jaxtyping import Bool, Int

from mirg_jax.errors import one_line
from mirg_jax.files import places
from mirg_jax.files.places import Place
from mirg_jax.files.streams import say
from mirg_jax.models import flops
from mirg_jax.models.config import ModelConfig
from mirg_jax.models.flops import Forward
from mirg_jax.runs import chips
from mirg_jax.runs.settings import Settings

_OTHER = ("evaluate", "checkpoint")  # phases that are no part of a step
_WAITS = 0.1  # fraction of a step spent on waiting for data from which it is worth a warning
_STEPS = 5  # steps that a warning about waiting is based on
_FULL = 0.95  # fraction of a device's memory
# Sampled and learned log-probabilities of the same tokens differ by rounding alone, on average by
# less than this; more is a fault.
MOST_DIFFERENT = 0.03


def sft_operations(settings: Settings, forward: Forward) -> float:
    """Returns the operations of an SFT step.

    Args:
      settings: the run's settings.
      forward: operations of the forward passes over the step's examples.
    """
    return (1 + _backward(settings)) * forward.decoder + _tower_passes(settings) * forward.tower


def grpo_operations(
    settings: Settings,
    config: ModelConfig,
    forward: Forward,
    prompt: float,
    lengths: Int[np.ndarray, "B G"],
    used: Bool[np.ndarray, " B"] | None = None,
) -> float:
    """Returns the operations of a GRPO step: rollout, reference and updates.

    Args:
      settings: the run's settings.
      config: the model's configuration.
      forward: operations of the forward passes over the step's prompts.
      prompt: tokens of a prompt, on average.
      lengths: tokens of the completions.
      used: the groups that are learned from; None for all.
    """
    grpo = settings.grpo
    assert grpo is not None

    def decoder(lengths: Int[np.ndarray, "B G"], share: float) -> float:
        new = int(lengths.sum())
        pairs = new * prompt + float((lengths * (lengths + 1.0) / 2).sum())
        return share * forward.decoder + flops.decoder(config, new, pairs, new)

    rollout = decoder(lengths, 1.0) + forward.tower
    share = 1.0 if used is None else float(used.mean())
    learned = decoder(lengths if used is None else lengths[used], share)
    tower = 0.0 if settings.tower_is_frozen else share * forward.tower
    reference = learned + tower if grpo.beta else 0.0
    before = learned + tower if grpo.takes_policy_before else 0.0
    updates = grpo.updates * ((1 + _backward(settings)) * learned + 3 * tower)
    return rollout + reference + before + updates


def _backward(settings: Settings) -> float:
    """Returns the work of the decoder's backward pass over that of the forward pass."""
    return 1.0 if settings.lora else 2.0  # frozen matrices need no gradient


def _tower_passes(settings: Settings) -> float:
    return 1.0 if settings.tower_is_frozen else 3.0


class Speed:
    """Measures steps and warns, once of each kind.

    Args:
      settings: the run's settings.
      warns: whether this process prints warnings.
    """

    def __init__(self, settings: Settings, *, warns: bool):
        self._settings, self._warns = settings, warns
        self._said: set[str] = set()
        self._waited: list[float] = []
        self._steps = 0

    def measure(
        self, seconds: Mapping[str, float], tokens: float, operations: float
    ) -> dict[str, float]:
        """Returns a step's speed: metrics by name.

        Args:
          seconds: the step's seconds by phase, in this process.
          tokens: tokens that the step processed or sampled.
          operations: the step's operations.
        """
        taken = sum(value for name, value in seconds.items() if name not in _OTHER)
        if not taken:
            return {}
        found = {"tokens_per_second": tokens / taken, "data_fraction": seconds["data"] / taken}
        device = jax.local_devices()[0]
        if chip := chips.find(device.device_kind):
            found["mfu"] = operations / taken / (chip.flops * jax.device_count())
        memory = device.memory_stats() or {}
        if "peak_bytes_in_use" in memory:
            found["peak_memory_gib"] = memory["peak_bytes_in_use"] / 2**30
            if limit := memory.get("bytes_limit"):
                self._check_memory(memory["peak_bytes_in_use"] / limit)
        self._check_waiting(found["data_fraction"])
        return found

    def _check_waiting(self, fraction: float) -> None:
        self._steps += 1
        if self._steps == 1:  # it fills the buffers
            return
        self._waited = [*self._waited, fraction][-_STEPS:]
        mean = sum(self._waited) / _STEPS
        if len(self._waited) == _STEPS and mean > _WAITS:
            self._warn(
                "waiting",
                f"the last {_STEPS} steps waited for data for {mean:.0%} of their time; raise "
                "data.threads, lower data.max_pixels, or move the images to a faster disk",
            )

    def _check_memory(self, fraction: float) -> None:
        if fraction > _FULL:
            self._warn(
                "memory",
                f"a device's memory was {fraction:.0%} full; larger batches may not fit, and "
                "scripts/plan.py says what would need less",
            )

    def check_logprobs(self, difference: float) -> None:
        """Warns if the learner's log-probabilities aren't those that were sampled from.

        They never are with 8-bit weights, which are then not the reason to warn.

        Args:
          difference: of the tokens' log-probabilities before an update, absolute, on average.
        """
        grpo = self._settings.grpo
        if not difference <= MOST_DIFFERENT and not (grpo and grpo.int8_sampling):
            self._warn(
                "log-probabilities",
                f"sampled and learned log-probabilities differ by {difference:.3g} on average, "
                f"where up to {MOST_DIFFERENT} is rounding; try model.attention=xla, and report it",
            )

    def _warn(self, kind: str, text: str) -> None:
        if self._warns and kind not in self._said:
            say(f"warning: {text}")
        self._said.add(kind)


class Profile:
    """Records a trace of some steps for TensorBoard or Perfetto, in WORKDIR/profile.

    Args:
      steps: numbers of the first and the last step, counted from 1; () for none.
      workdir: the run's folder.
    """

    def __init__(self, steps: tuple[int, ...], workdir: Place):
        """Raises ConfigError if a trace is asked for and can't be written to the folder."""
        if steps:
            places.check_local(workdir, "profile can't be recorded in a store: --workdir")
        self._steps, self._folder, self._running = steps, workdir / "profile", False

    def between(self, taken: int) -> None:
        """Ends and starts the trace as is due after `taken` steps.

        A run that is stopped saves its state instead and calls `close` then, since writing a trace
        may take half a minute.
        """
        if self._running and self._steps[1] == taken:
            self.close()
        if self._steps and self._steps[0] == taken + 1:
            self._running = self._try(lambda: jax.profiler.start_trace(str(self._folder)))

    def close(self) -> None:
        """Ends the trace, if one is being recorded."""
        if self._running:
            self._running = False
            if self._try(jax.profiler.stop_trace):
                say(f"trace written to {self._folder}")

    def _try(self, record: Callable[[], None]) -> bool:
        """Returns whether it could be recorded; if not, says why, since a run can do without."""
        try:
            record()
        except Exception as error:  # of many types, from the profiler's own library
            say(f"{self._folder}: no trace is recorded ({one_line(error)})")
            return False
        return True
