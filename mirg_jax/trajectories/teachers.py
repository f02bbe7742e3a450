"""Models that answer the stages' prompts, behind one method, `ask`."""

import asyncio
import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

from mirg_jax.chat.client import Client, Reply, Unanswerable, content, encode_image
from mirg_jax.data.examples import Example
from mirg_jax.errors import DataError, UserError
from mirg_jax.grounding.grammar import GroundedObject


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt of a stage about a question's images.

    Attributes:
      attempt: from 1; each is another request.
      objects: of stage 2, for stage 3.
      settings: of the teacher, all that an answer depends on.
    """

    question: Example
    stage: str
    attempt: int
    prompt: str
    objects: tuple[GroundedObject, ...]
    settings: str

    @functools.cached_property
    def key(self) -> str:
        """What it is known by; the same as long as the answer would be to the same thing."""
        what = (self.question.id, self.question.images, self.attempt, self.prompt, self.settings)
        return hashlib.sha256(json.dumps([self.stage, *what]).encode()).hexdigest()[:32]


class Teacher(Protocol):
    """What answers.

    Attributes:
      settings: all that an answer depends on but the request, as text.
    """

    settings: str

    async def make_ready(self, request: Request) -> None:
        """Does what can be done before the request has its turn.

        Raises:
          Unanswerable: for want of an answer ever.
        """

    async def ask(self, request: Request) -> Reply:
        """The answer.

        Raises:
          Retry: for want of an answer now.
          Unanswerable: for want of one ever.
          UserError: no request will be answered until the user has done something.
        """


class Images:
    """Images as the teachers get them, kept for the next stages of a question."""

    def __init__(self, root: str, max_pixels: int, kept: int):
        """
        Args:
          kept: how many questions' images.
        """
        self.root, self.max_pixels = root, max_pixels
        self.urls = functools.lru_cache(kept)(self._encode)

    def _encode(self, paths: tuple[str, ...]) -> list[str]:
        return [encode_image(self.root, path, self.max_pixels) for path in paths]


class OpenAITeacher:
    """Any server that speaks OpenAI's chat completions, with images."""

    def __init__(self, how: Mapping[str, Any], images: Images):
        """
        Args:
          how: a stage of the config.

        Raises:
          ConfigError: the environment has no key.
        """
        self._how = how
        self._images = images
        self._client = Client(
            how["model"],
            **{name: how[name] for name in ("base_url", "key_variable", "timeout")},
        )
        fields = ("model", "temperature", "max_tokens", "extra_body")
        settings = {name: how[name] for name in fields} | {"max_pixels": images.max_pixels}
        self.settings = json.dumps(settings, sort_keys=True)

    @property
    def where(self) -> tuple[str, str]:
        """Requests to the same server and model share their limits."""
        return self._client.base_url, self._how["model"]

    def body(self, request: Request) -> dict[str, Any]:
        """The request's JSON. Reads images.

        Raises:
          DataError: an image can't be read.
        """
        parts = []
        for n, url in enumerate(self._images.urls(request.question.images), start=1):
            parts += [("text", f"Image-{n}:"), ("image", url)]
        parts.append(("text", request.prompt))
        body = {
            "model": self._how["model"],
            "messages": [{"role": "user", "content": content(parts)}],
            "temperature": self._how["temperature"],
        }
        if self._how["max_tokens"]:
            body["max_tokens"] = self._how["max_tokens"]
        return body | self._how["extra_body"]

    async def make_ready(self, request: Request) -> None:
        try:
            await asyncio.to_thread(self._images.urls, request.question.images)
        except DataError as error:
            raise Unanswerable(str(error)) from None

    async def ask(self, request: Request) -> Reply:
        try:
            return await self._client.complete(self.body(request), request.key)  # images are ready
        except UserError as error:
            raise UserError(f"stage {request.stage}: {error}") from None
