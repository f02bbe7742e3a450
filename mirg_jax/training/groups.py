"""Writing of GRPO's sampled groups for inspection: WORKDIR/groups/step_NNNNNN.jsonl."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from mirg_jax.data.examples import Example
from mirg_jax.files import outputs
from mirg_jax.files.places import Place


def write(
    workdir: Place,
    step: int,
    examples: Sequence[Example],
    texts: Sequence[str],
    values: Mapping[str, Float[np.ndarray, "B G"]],
    count: int,
    used: Bool[np.ndarray, " B"] | None = None,
) -> None:
    """Writes the first `count` groups of a step as JSON lines, best completions first.

    Args:
      workdir: the run's folder.
      step: number of steps taken.
      examples: the B examples.
      texts: B·G completions, grouped by prompt.
      values: values of each completion by name: its reward, the reward's parts, its advantage.
      count: number of groups.
      used: which of the B groups the step learned from, if they were chosen.

    Raises:
      OSError: if they can't be written.
    """
    path = workdir / "groups" / f"step_{step:06d}.jsonl"
    outputs.make_folder(path.parent)
    group = len(texts) // len(examples)
    lines = []
    for i, example in enumerate(examples[:count]):
        completions = [
            {"text": texts[i * group + g]}
            | {name: round(float(array[i, g]), 4) for name, array in values.items()}
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
        if used is not None:
            row["used"] = bool(used[i])
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    outputs.replace_text(path, "".join(lines))
