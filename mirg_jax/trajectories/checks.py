"""What makes an answer of each stage good enough to train on.

A check gives back what is wrong, a line each; nothing where all is well. Boxes, ids and blocks are
read by `grounding.grammar`, as in training and evaluation.
"""

import collections
import dataclasses
import re
from collections.abc import Sequence

from mirg_jax.data.examples import Example, Target
from mirg_jax.data.prompts import FORBIDDEN
from mirg_jax.errors import ConfigError
from mirg_jax.grounding.boxes import iou
from mirg_jax.grounding.grammar import GroundedObject, find_objects, parse_response, prose, renumber

_HALF_PAIR = re.compile("[\ud800-\udfff]")
_COORDINATES = re.compile(r"[(\[]\s*\d+(?:\.\d+)?\s*,\s*\d+(?:\.\d+)?\s*[,)\]]")


@dataclasses.dataclass(frozen=True)
class Rules:
    """What is asked of answers.

    Attributes:
      answer_iou: least overlap of the final answer with the truth.
      match_iou: least overlap with which an object of stage 2 is taken for the one asked for.
      truth_boxes: that object gets its true box.
      min_words, max_words: of the thoughts, without boxes.
      max_objects: of a trajectory.
      leaks: patterns that give away that the answer was known.
    """

    answer_iou: float
    match_iou: float
    truth_boxes: bool
    min_words: int
    max_words: int
    max_objects: int
    leaks: tuple[re.Pattern, ...]

    def __post_init__(self):
        if not (0 <= self.answer_iou <= 1 and 0 <= self.match_iou <= 1):
            raise ConfigError("checks: answer_iou and match_iou lie within 0..1")


def read_leaks(text: str) -> tuple[re.Pattern, ...]:
    """Patterns, one a line; lines that begin with # are remarks.

    Raises:
      ConfigError: a line is not a regular expression.
    """
    lines = [line.strip() for line in text.splitlines()]
    try:
        found = [re.compile(line, re.IGNORECASE) for line in lines if line and line[0] != "#"]
    except re.error as error:
        raise ConfigError(f"leaks.txt: {error.pattern!r} is no pattern ({error})") from None
    return tuple(found)


def check_reasoning(text: str, question: Example, rules: Rules) -> list[str]:
    """Stage 1: thoughts in plain words, and the answer."""
    response = parse_response(text, len(question.images))
    problems = _not_text(text) + list(response.problems)
    problems += _thoughts(response.thinking or "", rules)
    if response.mentions or prose(response.thinking or "") != (response.thinking or ""):
        problems.append("the thoughts of stage 1 hold boxes or ids")
    if not problems:
        problems += wrong_answer(response.objects, question.targets, rules.answer_iou)
    return problems


def read_mapping(
    text: str, question: Example, rules: Rules
) -> tuple[tuple[GroundedObject, ...], list[str]]:
    """Stage 2: the objects, numbered within their images, and what is wrong with them.

    With `rules.truth_boxes`, the objects asked for get their true boxes. An object that is there
    already (its image, and its box nearly) is left out.
    """
    found, problems = find_objects(text, len(question.images))
    problems = _not_text(text) + list(problems)
    if not found and not problems:
        problems.append("no object with a box; does the server strip special tokens?")
    objects: list[GroundedObject] = []
    for obj in found:
        if obj.image is None:
            problems.append("an object of no image")
        elif not obj.label.strip():
            problems.append("an object without a name")
        elif not any(obj.image == o.image and _overlap(o, obj) >= 0.9 for o in objects):
            objects.append(dataclasses.replace(obj, label=" ".join(obj.label.split())))
    if len(objects) > rules.max_objects:
        problems.append(f"{len(objects)} objects are more than {rules.max_objects}")
    if problems:
        return (), problems

    matched = match(objects, question.targets)
    for target, (place, overlap) in zip(question.targets, matched, strict=True):
        if place is None or overlap < rules.match_iou:
            problems.append(
                f"no object where the answer is: the nearest overlaps it by {overlap:.2f}"
            )
        elif rules.truth_boxes:
            objects[place] = dataclasses.replace(objects[place], box=target.box)
    if problems:
        return (), problems
    counts: collections.Counter[int] = collections.Counter()
    numbered = []
    for obj in sorted(objects, key=lambda o: o.image):
        counts[obj.image] += 1
        numbered.append(dataclasses.replace(obj, number=counts[obj.image]))
    return tuple(numbered), []


def check_grounded(
    text: str, question: Example, objects: Sequence[GroundedObject], rules: Rules
) -> tuple[str, list[str]]:
    """Stage 3: the trajectory, its objects numbered in the order of their mention, and what is
    wrong with it.

    Args:
      objects: of stage 2; the trajectory may hold no other box.
    """
    response = parse_response(text, len(question.images))
    problems = _not_text(text) + list(response.problems)
    problems += _thoughts(response.thinking or "", rules)
    boxes = {(obj.image, obj.number): obj.box for obj in objects}
    numbers: dict[tuple[int, int], int] = {}
    counts: collections.Counter[int] = collections.Counter()
    for obj in response.mentions:
        key = (obj.image, obj.number)
        if obj.number is None:
            problems.append("a box without an id")
        elif key in numbers:
            problems.append(f"id [{key[0]}-{key[1]}] is given a box twice")
        elif boxes.get(key) != obj.box:
            problems.append(f"id [{key[0]}-{key[1]}] has a box that stage 2 didn't give it")
        elif not obj.label.strip():
            problems.append(f"id [{key[0]}-{key[1]}] has no name")
        else:
            counts[key[0]] += 1
            numbers[key] = counts[key[0]]
    if not response.mentions:
        problems.append("the thoughts hold no object")
    for obj in response.objects:
        if (obj.image, obj.number) not in numbers or boxes[obj.image, obj.number] != obj.box:
            problems.append("the answer is not an object of the thoughts")
    if not problems:
        problems += wrong_answer(response.objects, question.targets, rules.answer_iou)
    return ("", problems) if problems else (renumber(text, numbers), [])


def wrong_answer(
    objects: Sequence[GroundedObject], targets: Sequence[Target], least: float
) -> list[str]:
    """What is wrong with an answer: boxes too few, too many, in other images or elsewhere."""
    if len(objects) != len(targets):
        return [f"the answer has {len(objects)} boxes and the truth {len(targets)}"]
    problems = []
    for target, (place, overlap) in zip(targets, match(objects, targets), strict=True):
        if place is None:
            problems.append(f"the answer is not in image {target.image}")
        elif overlap < least:
            problems.append(f"the answer overlaps the truth by {overlap:.2f} only")
    return problems


def match(
    objects: Sequence[GroundedObject], targets: Sequence[Target]
) -> list[tuple[int | None, float]]:
    """For each target the object in its image that overlaps it most, one to one, best pair first.

    Returns: places in `objects` with the overlap; None where no object is left in that image.
    """
    pairs = sorted(
        (-_overlap(obj, target), t, o)
        for t, target in enumerate(targets)
        for o, obj in enumerate(objects)
        if target.image in (None, obj.image)
    )
    found: dict[int, tuple[int, float]] = {}
    for overlap, t, o in pairs:
        if t not in found and o not in {place for place, _ in found.values()}:
            found[t] = o, -overlap
    return [found.get(t, (None, 0.0)) for t in range(len(targets))]


def _overlap(a: GroundedObject | Target, b: GroundedObject | Target) -> float:
    return float(iou(a.box, b.box))


def _not_text(text: str) -> list[str]:
    """What a training example may not hold."""
    problems = [f"the control token {token}" for token in FORBIDDEN if token in text]
    if _HALF_PAIR.search(text):
        problems.append("half a surrogate pair, which is no text")
    return problems


def _thoughts(thinking: str, rules: Rules) -> list[str]:
    words = prose(thinking)
    problems = []
    if not rules.min_words <= (count := len(words.split())) <= rules.max_words:
        problems.append(f"{count} words of thought, not {rules.min_words} to {rules.max_words}")
    if coordinates := _COORDINATES.search(words):
        problems.append(f"coordinates in words: {coordinates[0]!r}")
    for pattern in rules.leaks:
        if said := pattern.search(words):
            problems.append(f"the thoughts know the answer: {said[0]!r}")
            break
    return problems
