"""The embedded teacher: it knows the procedural scenes, and needs no network."""

import functools
import json
import re

from mirg_jax.chat.client import Reply, Unanswerable
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
from mirg_jax.trajectories.prompts import answer_text
from mirg_jax.trajectories.teachers import Request

_NAMED = re.compile(
    rf"({re.escape(OBJECT_START)}[^<]*{re.escape(OBJECT_END)})<bbox_id>[^<]*</bbox_id>"
)


class SceneTeacher:
    """Answers for questions of `scene_tasks.write_dataset`, as an annotator who sees everything
    and draws every side of a box up to `error` sides too far out."""

    def __init__(self, seed: int, error: float):
        self.settings = json.dumps({"teacher": "scenes", "seed": seed, "error": error})
        self._find = functools.lru_cache(256)(functools.partial(_look, seed=seed, error=error))

    async def make_ready(self, request: Request) -> None:
        pass

    async def ask(self, request: Request) -> Reply:
        try:
            puzzle, things = self._find(request.question.id)
        except DataError as error:
            raise Unanswerable(str(error)) from None
        return Reply(_ANSWERS[request.stage](request, puzzle, things))


Things = tuple[tuple[GroundedObject, ...], ...]


def _look(name: str, *, seed: int, error: float) -> tuple[scene_tasks.Puzzle, Things]:
    puzzle, rng = scene_tasks.find_puzzle(name, seed)
    scene_tasks.annotate(puzzle, rng, 0.0)  # the first look, as if without error
    return puzzle, scene_tasks.annotate(puzzle, rng, error)


def _reasoning(request: Request, puzzle: scene_tasks.Puzzle, things: Things) -> str:
    listing = " ".join(
        f"Image-{n} shows {', '.join(thing.label for thing in shown)}."
        for n, shown in enumerate(things, start=1)
    )
    look_up = _NAMED.sub(r"\1", puzzle.look_up)
    for shown in things:
        for thing in shown:
            look_up = look_up.replace(format_id(thing.image, thing.number), thing.label)
    return format_response(f"{listing} {prose(look_up)}", answer_text(request.question))


def _mapping(request: Request, puzzle: scene_tasks.Puzzle, things: Things) -> str:
    return "\n".join(
        f"Image-{n}: {format_object(GroundedObject(thing.box, label=thing.label))}"
        for n, shown in enumerate(things, start=1)
        for thing in shown
    )


def _reassembly(request: Request, puzzle: scene_tasks.Puzzle, things: Things) -> str:
    boxes = {(obj.image, obj.number): obj.box for obj in request.objects}
    image, number = puzzle.target
    answer = GroundedObject(boxes[image, number], image, number)
    listing = "".join(map(format_object, request.objects))
    return format_response(f"{listing} {puzzle.look_up}", format_answer([answer]))


_ANSWERS = {"reasoning": _reasoning, "mapping": _mapping, "reassembly": _reassembly}
