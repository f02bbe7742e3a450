"""GRPO's sampled groups, written out to be read: WORKDIR/groups/step_NNNNNN.jsonl."""

import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from mirg_jax.data.examples import Example


def write(
    workdir: pathlib.Path,
    step: int,
    examples: Sequence[Example],
    texts: Sequence[str],
    values: Mapping[str, Float[np.ndarray, "B G"]],
    count: int,
) -> None:
    """Writes the first `count` groups of a step as JSON lines, best completions first.

    Args:
      texts: B·G completions, those of one prompt together.
      values: of each completion: its reward, the parts of it, its advantage.
    """
    path = workdir / "groups" / f"step_{step:06d}.jsonl"
    path.parent.mkdir(exist_ok=True)
    group = len(texts) // len(examples)
    with path.open("w") as file:
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
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
