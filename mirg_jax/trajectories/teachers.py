"""Models that answer the stages' prompts, behind one method, `ask`."""

import asyncio
import base64
import dataclasses
import email.utils
import functools
import hashlib
import io
import json
import math
import os
import time
from collections.abc import Mapping
from typing import Any, Protocol

import openai

from mirg_jax.data.examples import Example
from mirg_jax.data.images import load_image
from mirg_jax.errors import ConfigError, DataError, UserError
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


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer. `problem` says why there is no whole text, where there is none."""

    text: str
    problem: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Retry(Exception):
    """There was no answer, and there may be one later.

    Attributes:
      after: seconds that the server asks to wait, if it does.
      paid: the provider may have counted the request.
    """

    def __init__(self, reason: str, *, after: float | None = None, paid: bool = False):
        super().__init__(reason)
        self.after, self.paid = after, paid


class Unanswerable(Exception):
    """This request will have no answer, however often it is asked.

    Attributes:
      by_server: the server says so, who may say the same of every other.
    """

    def __init__(self, reason: str, *, by_server: bool = False):
        super().__init__(reason)
        self.by_server = by_server


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
        variable = how["key_variable"]
        self._key = os.environ.get(variable, "") if variable else "none"
        if not self._key:
            raise ConfigError(
                f"the environment variable {variable} is not set: put the key for "
                f"{how['model']} there, or name another variable in the stage's key_variable "
                '("" for a server without keys)'
            )
        self._images = images
        # Retries are ours, so that they wait their turn and are counted.
        self._client = openai.AsyncOpenAI(
            api_key=self._key,
            base_url=how["base_url"] or None,
            max_retries=0,
            timeout=how["timeout"],
        )
        fields = ("model", "temperature", "max_tokens", "extra_body")
        settings = {name: how[name] for name in fields} | {"max_pixels": images.max_pixels}
        self.settings = json.dumps(settings, sort_keys=True)

    @property
    def where(self) -> tuple[str, str]:
        """Requests to the same server and model share their limits."""
        return str(self._client.base_url), self._how["model"]

    def body(self, request: Request) -> dict[str, Any]:
        """The request's JSON. Reads images.

        Raises:
          DataError: an image can't be read.
        """
        content: list[dict[str, Any]] = []
        for n, url in enumerate(self._images.urls(request.question.images), start=1):
            content += [
                {"type": "text", "text": f"Image-{n}:"},
                {"type": "image_url", "image_url": {"url": url}},
            ]
        content.append({"type": "text", "text": request.prompt})
        body = {
            "model": self._how["model"],
            "messages": [{"role": "user", "content": content}],
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
        body = self.body(request)  # its images are ready
        seconds = self._how["timeout"]
        try:
            async with asyncio.timeout(seconds):  # the client's own begins anew with every byte
                # Not `chat.completions.create`, which looks through every field of the images.
                answer = await self._client.post(
                    "/chat/completions",
                    cast_to=object,
                    body=body,
                    options={"headers": {"Idempotency-Key": request.key}},
                )
        except (TimeoutError, openai.APITimeoutError):
            raise Retry(f"no answer within {seconds:g} s", paid=True) from None
        except openai.APIConnectionError as error:
            cause = type(error.__cause__).__name__
            raise Retry(f"no connection ({cause})", paid=cause != "ConnectError") from None
        except openai.APIStatusError as error:
            raise self._of_status(request, error) from None
        except (openai.APIError, ValueError):
            raise Retry("an answer that is not JSON", paid=True) from None
        try:
            return read_completion(answer, hide=self._key)
        except ValueError as error:
            raise Retry(str(error), paid=True) from None

    def _of_status(self, request: Request, error: openai.APIStatusError) -> Exception:
        status = error.status_code
        # The client finds no words in some servers' bodies.
        words = error.response.text if error.message == f"Error code: {status}" else error.message
        words = " ".join(words.replace(self._key, "[key]").split())[:300]
        said = f"HTTP {status}: {words}"
        quota = getattr(error, "code", None) == "insufficient_quota"
        if status in (401, 403, 404) or quota:
            return UserError(
                f"stage {request.stage}: {self._client.base_url.host} answers {said}; check "
                f"{self._how['key_variable'] or 'the server'}, base_url and model, and run again "
                "to go on"
            )
        if status in (408, 409, 425, 429) or status >= 500:
            return Retry(said, after=retry_after(error.response.headers))
        return Unanswerable(said, by_server=True)


def read_completion(answer: Any, hide: str = "") -> Reply:
    """A chat completion's JSON → its first choice.

    Args:
      hide: a text that is not passed on.

    Raises:
      ValueError: it is of another form.
    """
    try:
        usage = answer.get("usage") or {}
        tokens = [int(usage.get(f"{kind}_tokens") or 0) for kind in ("prompt", "completion")]
        if not isinstance(answer["choices"], list):
            raise TypeError
        if not answer["choices"]:
            return Reply("", "no choice in the answer", *tokens)
        choice = answer["choices"][0]
        text, refusal = choice["message"].get("content"), choice["message"].get("refusal")
        finish = str(choice.get("finish_reason"))
        if not isinstance(text, str | None):
            raise TypeError
    except (AttributeError, TypeError, KeyError, ValueError, OverflowError):
        raise ValueError("an answer of another form than a chat completion") from None
    problem = {
        "length": "the answer was cut at max_tokens",
        "content_filter": "the answer was filtered",
    }.get(finish, "")
    if refusal:
        problem = "the teacher refused"
    elif not text:
        problem = problem or "an empty answer"
    text = text or str(refusal or "")
    return Reply(text.replace(hide, "[key]") if hide else text, problem, *tokens)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from now by the header Retry-After: a number or a date."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def encode_image(root: str, path: str, max_pixels: int) -> str:
    """An image as a data URL of a JPEG of at most so many pixels.

    Raises:
      DataError: it can't be read.
    """
    image = load_image(root, path)
    if (pixels := image.width * image.height) > max_pixels:
        shrink = math.sqrt(max_pixels / pixels)
        size = [max(1, math.floor(side * shrink)) for side in image.size]
        image = image.resize(size, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
