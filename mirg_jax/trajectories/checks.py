"""The checks that each stage's answers have to pass.

A check returns the problems it finds, one line each; an answer without problems is accepted. Boxes,
ids and blocks are parsed by `grounding.grammar`, as in training and evaluation.
"""

import collections
import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

from mirg_jax.data.examples import Example, Target
from mirg_jax.data.prompts import FORBIDDEN
from mirg_jax.errors import ConfigError
from mirg_jax.grounding.boxes import iou
from mirg_jax.grounding.grammar import GroundedObject, find_objects, parse_response, prose, renumber

_SURROGATE = re.compile("[\ud800-\udfff]")
_COORDINATES = re.compile(r"[(\[]\s*\d+(?:\.\d+)?\s*,\s*\d+(?:\.\d+)?\s*[,)\]]")
# Two objects of an image whose boxes overlap by this much are the same.
_SAME_OBJECT_IOU = 0.9


@dataclasses.dataclass(frozen=True)
class Rules:
    """What answers have to satisfy.

    Attributes:
      answer_iou: least overlap of the final answer with the truth.
      match_iou: least overlap with the truth of the object of stage 2 that is the answer.
      truth_boxes: whether that object gets the true box.
      min_words, max_words: of the thoughts, without boxes.
      max_objects: of a trajectory.
      leaks: patterns of words that show that the answer was known; read with the prompts.
    """

    answer_iou: float
    match_iou: float
    truth_boxes: bool
    min_words: int
    max_words: int
    max_objects: int
    leaks: tuple[re.Pattern, ...] = ()


def read_leaks(text: str) -> tuple[re.Pattern, ...]:
    """Reads patterns, one on each line; lines that begin with # are comments.

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
    """Checks an answer of stage 1: thoughts in plain words, and the final answer."""
    response = parse_response(text, len(question.images))
    thinking = response.thinking or ""
    problems = _text_problems(text) + list(response.problems) + _thought_problems(thinking, rules)
    if response.mentions or prose(thinking) != thinking:
        problems.append("the thoughts of stage 1 hold boxes or ids")
    if not problems:
        problems += answer_problems(response.objects, question.targets, rules.answer_iou)
    return problems


def read_mapping(
    text: str, question: Example, rules: Rules
) -> tuple[tuple[GroundedObject, ...], list[str]]:
    """Reads and checks an answer of stage 2.

    With `rules.truth_boxes`, the objects that the question asks for get their true boxes. Of
    several objects with nearly the same box in the same image, the first is kept.

    Returns: the objects, numbered within their images, and the problems; one of them is empty.
    """
    found, problems = find_objects(text, len(question.images))
    problems = _text_problems(text) + list(problems)
    if not found and not problems:
        problems.append("no object with a box; does the server strip special tokens?")
    objects: list[GroundedObject] = []
    for obj in found:
        if obj.image is None:
            problems.append("an object of no image")
        elif not obj.label.strip():
            problems.append("an object without a name")
        elif not any(_are_same(obj, other) for other in objects):
            objects.append(dataclasses.replace(obj, label=" ".join(obj.label.split())))
    if len(objects) > rules.max_objects:
        problems.append(f"{len(objects)} objects are more than {rules.max_objects}")
    if problems:
        return (), problems

    for target, match in zip(
        question.targets, match_targets(objects, question.targets), strict=True
    ):
        if match.index is None or match.iou < rules.match_iou:
            problems.append(
                f"no object where the answer is: the nearest overlaps it by {match.iou:.2f}"
            )
        elif rules.truth_boxes:
            objects[match.index] = dataclasses.replace(objects[match.index], box=target.box)
    return ((), problems) if problems else (_number(objects), [])


def _are_same(a: GroundedObject, b: GroundedObject) -> bool:
    return a.image == b.image and _iou(a, b) >= _SAME_OBJECT_IOU


def _number(objects: Sequence[GroundedObject]) -> tuple[GroundedObject, ...]:
    """Sorts objects by image, and numbers them within each."""
    counts: collections.Counter[int] = collections.Counter()
    numbered = []
    for obj in sorted(objects, key=lambda o: o.image):
        counts[obj.image] += 1
        numbered.append(dataclasses.replace(obj, number=counts[obj.image]))
    return tuple(numbered)


def check_grounded(
    text: str, question: Example, objects: Sequence[GroundedObject], rules: Rules
) -> tuple[str, list[str]]:
    """Checks an answer of stage 3.

    Args:
      objects: of stage 2; the trajectory may hold no other boxes.

    Returns: the trajectory, its objects numbered in the order in which they are mentioned, and the
      problems; one of them is empty.
    """
    response = parse_response(text, len(question.images))
    problems = _text_problems(text) + list(response.problems)
    problems += _thought_problems(response.thinking or "", rules)
    boxes = {(obj.image, obj.number): obj.box for obj in objects}
    numbers: dict[tuple[int, int], int] = {}  # the new number by image and old number
    counts: collections.Counter[int] = collections.Counter()
    for obj in response.mentions:
        key, name = (obj.image, obj.number), f"id [{obj.image}-{obj.number}]"
        if obj.number is None:
            problems.append("a box without an id")
        elif key in numbers:
            problems.append(f"{name} is given a box twice")
        elif boxes.get(key) != obj.box:
            problems.append(f"{name} has a box that stage 2 didn't give it")
        elif not obj.label.strip():
            problems.append(f"{name} has no name")
        else:
            counts[obj.image] += 1
            numbers[key] = counts[obj.image]
    if not response.mentions:
        problems.append("the thoughts hold no object")
    for obj in response.objects:
        if (obj.image, obj.number) not in numbers or boxes[obj.image, obj.number] != obj.box:
            problems.append("the answer is not an object of the thoughts")
    if not problems:
        problems += answer_problems(response.objects, question.targets, rules.answer_iou)
    return ("", problems) if problems else (renumber(text, numbers), [])


def answer_problems(
    objects: Sequence[GroundedObject], targets: Sequence[Target], min_iou: float
) -> list[str]:
    """Compares a final answer with the truth: the number of boxes, their images and places."""
    if len(objects) != len(targets):
        return [f"the answer has {len(objects)} boxes and the truth {len(targets)}"]
    problems = []
    for target, match in zip(targets, match_targets(objects, targets), strict=True):
        if match.index is None:
            problems.append(f"the answer is not in image {target.image}")
        elif match.iou < min_iou:
            problems.append(f"the answer overlaps the truth by {match.iou:.2f} only")
    return problems


class Match(NamedTuple):
    """The object that is matched to a target.

    Attributes:
      index: of the object; None if no object is left in the target's image.
    """

    index: int | None
    iou: float


def match_targets(objects: Sequence[GroundedObject], targets: Sequence[Target]) -> list[Match]:
    """Matches targets one to one to objects of the same image, the pair with the best IoU first."""
    pairs = sorted(
        (-_iou(obj, target), t, o)
        for t, target in enumerate(targets)
        for o, obj in enumerate(objects)
        if target.image in (None, obj.image)
    )
    matches: dict[int, Match] = {}
    taken: set[int] = set()
    for negative_iou, t, o in pairs:
        if t not in matches and o not in taken:
            matches[t] = Match(o, -negative_iou)
            taken.add(o)
    return [matches.get(t, Match(None, 0.0)) for t in range(len(targets))]


def _iou(a: GroundedObject | Target, b: GroundedObject | Target) -> float:
    return float(iou(a.box, b.box))


def _text_problems(text: str) -> list[str]:
    """Finds characters and tokens that a training example must not hold."""
    problems = [f"the control token {token}" for token in FORBIDDEN if token in text]
    if _SURROGATE.search(text):
        problems.append("half a surrogate pair, which is no text")
    return problems


def _thought_problems(thinking: str, rules: Rules) -> list[str]:
    """Checks the length of thoughts, and looks for coordinates and leaks in their words."""
    words = prose(thinking)
    problems = []
    if not rules.min_words <= (count := len(words.split())) <= rules.max_words:
        problems.append(f"{count} words of thought, not {rules.min_words} to {rules.max_words}")
    if coordinates := _COORDINATES.search(words):
        problems.append(f"coordinates in words: {coordinates[0]!r}")
    leaks = filter(None, (pattern.search(words) for pattern in rules.leaks))
    if leak := next(leaks, None):
        problems.append(f"the thoughts know the answer: {leak[0]!r}")
    return problems
