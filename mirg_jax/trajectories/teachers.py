"""Teachers: what answers the stages' prompts."""

import asyncio
import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from mirg_jax.chat.client import Client, Unanswerable, content, encode_image
from mirg_jax.chat.completions import Reply
from mirg_jax.data.images import Root
from mirg_jax.errors import DataError, UserError
from mirg_jax.trajectories.request import Request
from mirg_jax.trajectories.settings import OpenAITeacherSettings


@runtime_checkable
class Teacher(Protocol):
    """Answers requests.

    Attributes:
      server: address and model that requests are sent to, which share their rate limits; None for
        a teacher in this process.
    """

    server: tuple[str, str] | None

    async def make_ready(self, request: Request) -> None:
        """Does the part of the work that needs no turn at the server, such as reading images.

        Raises:
          Unanswerable: the request can never be answered.
        """

    async def ask(self, request: Request) -> Reply:
        """Answers a request.

        Raises:
          Retry: there is no answer now, but there may be one later.
          Unanswerable: the request can never be answered.
          UserError: no request will be answered until the user changes something.
        """


class EncodedImages:
    """Images as data URLs; the latest are kept, for the next stages of their questions."""

    def __init__(self, root: Root, kept: int):
        """
        Args:
          root: folder that the images' paths are relative to.
          kept: number of questions whose images are kept.
        """
        self._root = root
        self.urls = functools.lru_cache(kept)(self._encode)

    def _encode(self, paths: tuple[str, ...], max_pixels: int) -> list[str]:
        return [encode_image(self._root, path, max_pixels) for path in paths]


def request_body(
    settings: OpenAITeacherSettings, images: EncodedImages, request: Request
) -> dict[str, Any]:
    """Returns a request as the JSON of a chat completion. Reads the images.

    Raises:
      DataError: an image can't be read.
    """
    parts = []
    urls = images.urls(request.question.images, settings.max_pixels)
    for n, url in enumerate(urls, start=1):
        parts += [("text", f"Image-{n}:"), ("image", url)]
    parts.append(("text", request.prompt))
    body = {
        "model": settings.model,
        "messages": [{"role": "user", "content": content(parts)}],
        "temperature": settings.temperature,
    }
    if settings.max_tokens:
        body["max_tokens"] = settings.max_tokens
    return body | settings.extra_body


class OpenAITeacher:
    """A model behind a server with OpenAI's chat completions."""

    def __init__(
        self,
        settings: OpenAITeacherSettings,
        images: EncodedImages,
        connect: Callable[..., Client] = Client,
    ):
        """
        Args:
          connect: makes the client, of the arguments of `Client`.

        Raises:
          ConfigError: the environment has no key.
        """
        self._settings, self._images = settings, images
        self._client = connect(
            settings.model,
            base_url=settings.base_url,
            key_variable=settings.key_variable,
            timeout=settings.timeout,
        )
        self.server = self._client.base_url, settings.model

    async def make_ready(self, request: Request) -> None:
        images = request.question.images
        try:
            await asyncio.to_thread(self._images.urls, images, self._settings.max_pixels)
        except DataError as error:
            raise Unanswerable(str(error)) from None

    async def ask(self, request: Request) -> Reply:
        body = request_body(self._settings, self._images, request)  # its images are encoded already
        try:
            return await self._client.complete(body, request.key)
        except UserError as error:
            raise UserError(f"stage {request.stage}: {error}") from None
