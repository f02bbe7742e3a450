"""A request to a teacher."""

import dataclasses
import functools
import hashlib
import json

from mirg_jax.data.examples import Example
from mirg_jax.grounding.grammar import GroundedObject


@dataclasses.dataclass(frozen=True)
class Request:
    """A stage's prompt about the images of a question.

    Attributes:
      attempt: counts from 1; every attempt is a request of its own.
      objects: the objects found in stage 2; empty in stages 1 and 2.
      identity: `identity` of the teacher's settings.
      pictures: hash of the question's images; None if one can't be read, "" if they don't count, as
        in earlier versions.
    """

    question: Example
    stage: str
    attempt: int
    prompt: str
    objects: tuple[GroundedObject, ...]
    identity: str
    pictures: str | None = ""

    @functools.cached_property
    def key(self) -> str:
        """A hash of everything that the answer depends on. The journal files answers under it."""
        return self._hash(*([] if self.pictures == "" else [self.pictures]))

    @functools.cached_property
    def key_by_samples(self) -> str:
        """The same with samples of the images' content, as earlier versions filed answers."""
        return self._hash(*([self.pictures.partition(".")[0]] if self.pictures else []))

    @functools.cached_property
    def key_by_name(self) -> str:
        """The same without the images' content, as versions before that filed answers."""
        return self._hash()

    def _hash(self, *more: str | None) -> str:
        question = self.question
        parts = [self.stage, question.id, question.images, self.attempt, self.prompt, self.identity]
        return hashlib.sha256(json.dumps([*parts, *more]).encode()).hexdigest()[:32]
