"""A teacher for the procedural scenes. It knows what they show, so it needs no model or network."""

import functools
import re

from mirg_jax.chat.client import Unanswerable
from mirg_jax.chat.completions import Reply
from mirg_jax.errors import DataError
from mirg_jax.grounding.grammar import (
    OBJECT_END,
    OBJECT_START,
    GroundedObject,
    format_answer,
    format_id,
    format_object,
    format_response,
    prose,
)
from mirg_jax.scenes import scene_tasks
from mirg_jax.scenes.puzzles import Puzzle, annotate
from mirg_jax.trajectories.prompts import answer_text
from mirg_jax.trajectories.request import Request
from mirg_jax.trajectories.settings import SceneTeacherSettings

_NAMED = re.compile(
    rf"({re.escape(OBJECT_START)}[^<]*{re.escape(OBJECT_END)})<bbox_id>[^<]*</bbox_id>"
)

Things = tuple[tuple[GroundedObject, ...], ...]  # of each image


class SceneTeacher:
    """Answers for questions of `scene_tasks.write_dataset` like an annotator who sees every object
    and draws each side of a box too far out, by up to `error` times the side's length."""

    server = None

    def __init__(self, settings: SceneTeacherSettings):
        look = functools.partial(_look, seed=settings.seed, error=settings.error)
        self._look = functools.lru_cache(256)(look)

    async def make_ready(self, request: Request) -> None:
        pass

    async def ask(self, request: Request) -> Reply:
        try:
            puzzle, things = self._look(request.question.id)
        except DataError as error:
            raise Unanswerable(str(error)) from None
        return Reply(_ANSWERS[request.stage](request, puzzle, things))


def _look(name: str, *, seed: int, error: float) -> tuple[Puzzle, Things]:
    """Draws a scene again, and annotates it.

    Raises:
      DataError: it is no procedural scene.
    """
    puzzle, rng = scene_tasks.find_puzzle(name, seed)
    annotate(puzzle, rng, 0.0)  # advances `rng` past the annotation without error
    return puzzle, annotate(puzzle, rng, error)


def _reasoning(request: Request, puzzle: Puzzle, things: Things) -> str:
    listing = " ".join(
        f"Image-{n} shows {', '.join(thing.label for thing in shown)}."
        for n, shown in enumerate(things, start=1)
    )
    look_up = _NAMED.sub(r"\1", puzzle.look_up)
    for shown in things:
        for thing in shown:
            look_up = look_up.replace(format_id(thing.image, thing.number), thing.label)
    return format_response(f"{listing} {prose(look_up)}", answer_text(request.question))


def _mapping(request: Request, puzzle: Puzzle, things: Things) -> str:
    return "\n".join(
        f"Image-{n}: {format_object(GroundedObject(thing.box, label=thing.label))}"
        for n, shown in enumerate(things, start=1)
        for thing in shown
    )


def _reassembly(request: Request, puzzle: Puzzle, things: Things) -> str:
    boxes = {(obj.image, obj.number): obj.box for obj in request.objects}
    image, number = puzzle.target
    answer = GroundedObject(boxes[image, number], image, number)
    listing = "".join(map(format_object, request.objects))
    return format_response(f"{listing} {puzzle.look_up}", format_answer([answer]))


_ANSWERS = {"reasoning": _reasoning, "mapping": _mapping, "reassembly": _reassembly}
