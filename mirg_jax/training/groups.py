"""GRPO's sampled groups for inspection: WORKDIR/groups/step_NNNNNN.jsonl, tables of pictures."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mirg_jax.data.examples import Example
from mirg_jax.data.images import ImageRoot, load_image, shrink
from mirg_jax.errors import DataError
from mirg_jax.files import outputs
from mirg_jax.files.places import Place
from mirg_jax.grounding.grammar import GroundedObject, parse_response
from mirg_jax.inference.pictures import draw_side_by_side

_MOST_PIXELS = 65_536  # of each image in a table's pictures
_TARGET, _ANSWER = "lime", "red"


def rows(
    examples: Sequence[Example],
    texts: Sequence[str],
    values: Mapping[str, Float[np.ndarray, "B G"]],
    count: int,
    used: Bool[np.ndarray, " B"] | None = None,
) -> list[dict[str, Any]]:
    """Returns the first `count` groups of a step as JSON objects, best completions first.

    Args:
      examples: the B examples.
      texts: B·G completions, grouped by prompt.
      values: values of each completion by name: its reward, the reward's parts, its advantage.
      count: number of groups.
      used: which of the B groups the step learned from, if they were chosen.
    """
    group = len(texts) // len(examples)
    found = []
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
        if example.direct is not None:
            row["direct"] = example.direct
        if used is not None:
            row["used"] = bool(used[i])
        found.append(row)
    return found


def write(workdir: Place, step: int, found: Sequence[Mapping[str, Any]]) -> None:
    """Writes groups as JSON lines.

    Args:
      workdir: the run's folder.
      step: number of steps taken.
      found: the groups, as of `rows`.

    Raises:
      OSError: if they can't be written.
    """
    path = workdir / "groups" / f"step_{step:06d}.jsonl"
    outputs.make_folder(path.parent)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    outputs.replace_text(path, "".join(lines))


def table(
    examples: Sequence[Example], found: Sequence[Mapping[str, Any]], root: ImageRoot
) -> tuple[list[str], list[list[Any]]]:
    """Returns groups as a table, a row for each completion.

    A picture has the question's images side by side, small, with the targets in green and the
    completion's boxes in red. Groups whose images can't be read any more are left out.

    Args:
      examples: the examples of the groups.
      found: the groups, as of `rows`.
      root: what their image paths are relative to.

    Returns:
      The names of the columns, and the rows, with a PIL image in column "picture".
    """
    values = [name for name in found[0]["completions"][0] if name != "text"] if found else []
    cells = []
    for example, row in zip(examples, found, strict=False):
        try:
            images = [shrink(load_image(root, path), _MOST_PIXELS) for path in example.images]
        except DataError:
            continue
        targets = [GroundedObject(t.box, t.image, label="target") for t in example.targets]
        for completion in row["completions"]:
            text = completion["text"]
            told = parse_response(text, len(images), direct=bool(example.direct)).objects
            colours = [_TARGET] * len(targets) + [_ANSWER] * len(told)
            picture = draw_side_by_side(images, [*targets, *told], colours)
            asked = [example.id, example.task, example.question]
            cells.append([*asked, picture, text, *(completion[name] for name in values)])
    return ["id", "task", "question", "picture", "completion", *values], cells
