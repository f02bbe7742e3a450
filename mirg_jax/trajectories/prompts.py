"""The stages' prompts: text files that users can read and change, one for each stage and task.

`STAGE/frame.txt` is the prompt of a stage, with names to be filled in: `$guidance` stands for the
text of `STAGE/TASK.txt`; the others are `$count`, `$question`, `$answer` (stage 1), `$reasoning`
(stages 2 and 3) and `$objects` (stage 3). `leaks.txt` lists what thoughts must not say.
"""

import hashlib
import importlib.resources
import json
import pathlib
import string
from collections.abc import Sequence
from typing import NamedTuple

from mirg_jax.data.examples import IMAGE_MARK, Example
from mirg_jax.errors import ConfigError
from mirg_jax.grounding.grammar import GroundedObject, format_box, format_object

STAGES = ("reasoning", "mapping", "reassembly")
_NAMES = {
    "reasoning": {"answer"},
    "mapping": {"reasoning"},
    "reassembly": {"reasoning", "objects"},
}


class Prompts(NamedTuple):
    """The content of a folder of prompts.

    Attributes:
      frames: by stage.
      guidance: by stage and task.
      leaks: the text of `leaks.txt`.
    """

    frames: dict[str, str]
    guidance: dict[tuple[str, str], str]
    leaks: str

    def tasks(self) -> set[str]:
        """Returns the tasks that have a text for every stage."""
        return set.intersection(
            *({task for at, task in self.guidance if at == stage} for stage in STAGES)
        )

    def hash_of(self, stage: str) -> str:
        """Returns a hash of a stage's texts."""
        texts = {task: text for (at, task), text in self.guidance.items() if at == stage}
        whole = json.dumps([self.frames[stage], texts], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()

    def render(self, stage: str, question: Example, **values: str) -> str:
        """Returns the prompt of a stage for a question.

        Args:
          values: of the names that only this stage has.
        """
        return string.Template(self.frames[stage]).substitute(
            count=len(question.images),
            question=question_text(question),
            guidance=self.guidance[stage, question.task],
            **values,
        )


def load_prompts(folder: str = "") -> Prompts:
    """Reads a folder with the layout of the package's own, which "" stands for.

    Raises:
      ConfigError: a file is missing or not UTF-8, or holds an unknown `$name`.
    """
    root = pathlib.Path(folder) if folder else importlib.resources.files(__package__) / "prompts"

    def read(path) -> str:
        try:
            return path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            what = getattr(error, "strerror", None) or "not UTF-8"
            raise ConfigError(
                f"prompts: {path}: cannot be read ({what}); copy mirg_jax/trajectories/prompts "
                "and change the copy"
            ) from None

    frames, guidance = {}, {}
    for stage in STAGES:
        frames[stage] = read(root / stage / "frame.txt")
        _check_frame(stage, frames[stage])
        for file in (root / stage).iterdir():
            task = file.name.removesuffix(".txt")
            if file.name.endswith(".txt") and task != "frame":
                guidance[stage, task] = read(file)
    return Prompts(frames, guidance, read(root / "leaks.txt"))


def _check_frame(stage: str, text: str) -> None:
    """Raises ConfigError for names that can't be filled in."""
    try:
        names = set(string.Template(text).get_identifiers())
        string.Template(text).substitute(dict.fromkeys(names, ""))
    except ValueError as error:
        raise ConfigError(f"prompts: {stage}/frame.txt: {error}; write $$ for $") from None
    if unknown := names - _NAMES[stage] - {"count", "question", "guidance"}:
        raise ConfigError(f"prompts: {stage}/frame.txt: ${min(unknown)} means nothing here")


def question_text(question: Example) -> str:
    """Returns the question's words. Image marks at its start are dropped, since the images come
    before the question, and others become the images' names."""
    text, n = question.question.strip(), 0
    while text.startswith(IMAGE_MARK):
        text, n = text.removeprefix(IMAGE_MARK).strip(), n + 1
    while IMAGE_MARK in text:
        n += 1
        text = text.replace(IMAGE_MARK, f"Image-{n}", 1)
    return text


def answer_text(question: Example) -> str:
    """Returns the true answer in a form that `grounding.grammar` parses."""
    return " ".join(
        (f"Image-{target.image}: " if target.image else "") + format_box(target.box)
        for target in question.targets
    )


def objects_text(objects: Sequence[GroundedObject]) -> str:
    """Returns a line for each object, in the form of its first mention in a trajectory."""
    return "\n".join(map(format_object, objects))
