"""A client for servers with OpenAI's chat completions, with images."""

import asyncio
import base64
import dataclasses
import email.utils
import io
import json
import math
import os
import re
import time
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import openai
from PIL import Image

from mirg_jax.chat.completions import Reply, ServerError, quote_words, read_completion
from mirg_jax.chat.served import Served
from mirg_jax.data.images import Root, load_image, shrink
from mirg_jax.errors import ConfigError, UserError, without_secrets

# Names of fields that hold a key or a password.
_SECRET = re.compile(
    r"api_?key|passw|secret|authori[sz]ation|(?:access|auth)_?token", re.IGNORECASE
)
_HEADERS = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID")  # which the library sends as headers
_PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "https_proxy", "http_proxy")


class Retry(Exception):
    """There is no answer now, but there may be one later.

    Attributes:
      after: seconds to wait, if the server asks for it.
      paid: whether the provider may charge for the request.
    """

    def __init__(self, reason: str, *, after: float | None = None, paid: bool = False):
        super().__init__(reason)
        self.after, self.paid = after, paid


class Unanswerable(Exception):
    """The request can never be answered.

    Attributes:
      by_server: whether the server refused it; it may refuse all other requests too.
    """

    def __init__(self, reason: str, *, by_server: bool = False):
        super().__init__(reason)
        self.by_server = by_server


def check_extra_body(fields: Mapping[str, Any], name: str) -> None:
    """Checks that additional fields of a request leave alone what makes it this request.

    Args:
      fields: the additional fields.
      name: what the user calls them, for the message: a flag or a setting.

    Raises:
      ConfigError: if one is the question or the model, asks for an answer in pieces, or can't be
        written.
    """
    for field, why in (
        ("messages", "the question is there"),
        ("model", "it has a setting of its own"),
        ("stream", "answers are read whole"),
    ):
        if field in fields:
            raise ConfigError(f"{name}: {field!r} can't be set here ({why}); leave it out")
    if secret := next(filter(_SECRET.search, fields), None):
        raise ConfigError(
            f"{name}: {secret!r} can't be set here (requests are recorded in files); give keys by "
            "the environment's variable that key_variable names"
        )
    _check_characters(json.dumps(fields, ensure_ascii=False, default=str), name)


def _check_characters(text: str, name: str) -> None:
    """Checks that a request with this text can be written.

    Raises:
      ConfigError: if the text holds half a surrogate pair, as Python reads bytes that are no text.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{name}: a request with it can't be written (it holds half a surrogate pair, or bytes "
            "that are no text); give whole characters"
        ) from None


class Client:
    """Sends requests to a server, each once."""

    def __init__(self, model: str, *, base_url: str, key_variable: str, timeout: float):
        """
        Args:
          model: its name on the server.
          base_url: "" for the environment's OPENAI_BASE_URL, or OpenAI's own server.
          key_variable: the environment variable that holds the key; "" for a server without keys.
          timeout: seconds, for a whole answer.

        Raises:
          ConfigError: the environment variable is not set, the server's address or a proxy can't be
            used, or no request can be written with the model's name or the environment.
        """
        self._key_variable, self._timeout = key_variable, timeout
        self._key = os.environ.get(key_variable, "").strip() if key_variable else "none"
        if not self._key:
            raise ConfigError(
                f"the environment variable {key_variable} is not set: put the key for {model} "
                'there, or name another variable as key_variable ("" for a server without keys)'
            )
        if not (self._key.isascii() and self._key.isprintable()):
            raise ConfigError(
                f"the environment variable {key_variable} holds characters that no key has; "
                "put the key alone there"
            )
        for name in _HEADERS:
            value = os.environ.get(name, "")
            if not (value.isascii() and value.isprintable() and value == value.strip()):
                raise ConfigError(
                    f"the environment variable {name} holds characters that no request's header "
                    "can be written with; correct it or unset it"
                )
        _check_characters(model, "model")
        self._hidden = self._key if key_variable else ""
        self._client = _connect(self._key, base_url, timeout)
        self._served = Served(self.base_url, model)

    @property
    def base_url(self) -> str:
        """The server's address without secrets, for messages and records."""
        address = without_secrets(str(self._client.base_url))
        return address.replace(self._hidden, "…") if self._hidden else address

    async def close(self) -> None:
        await self._client.close()

    async def complete(self, body: Mapping[str, Any], key: str) -> Reply:
        """Sends a request and returns its answer.

        If it is of another model than was asked for, a line says so, once.

        Args:
          body: the request as JSON.
          key: names the request, and is the same whenever it is sent again.

        Raises:
          Retry: there is no answer now, but there may be one later.
          Unanswerable: the request can never be answered.
          UserError: no request will be answered until the user changes something.
        """
        try:
            async with asyncio.timeout(self._timeout):  # the library's starts again at every byte
                # Not `chat.completions.create`, which spends long on walking through the images.
                answer = await self._client.post(
                    "/chat/completions",
                    cast_to=object,
                    body=body,
                    options={"headers": {"Idempotency-Key": key}},
                )
        except (TimeoutError, openai.APITimeoutError):
            raise Retry(f"no answer within {self._timeout:g} s", paid=True) from None
        except openai.APIConnectionError as error:
            cause = type(error.__cause__).__name__
            paid = cause not in ("ConnectError", "ProxyError")
            raise Retry(f"no connection ({cause}){self._by_proxy()}", paid=paid) from None
        except openai.APIStatusError as error:
            raise self._status_error(error) from None
        except UnicodeEncodeError:
            raise Unanswerable(
                "the request can't be written: half a surrogate pair in it"
            ) from None
        except (openai.APIError, ValueError) as error:
            words = quote_words(str(getattr(error, "doc", "")), self._hidden)
            said = f"an answer that is not JSON: {words}" if words else "an answer that is not JSON"
            raise Retry(said, paid=True) from None
        try:
            reply = read_completion(answer, hide=self._hidden)
        except ServerError as error:
            if error.status is None:
                raise Retry(str(error), paid=True) from None
            raise self._error_of(error.status, str(error)) from None
        except ValueError as error:
            raise Retry(str(error), paid=True) from None
        self._served.other(reply)
        return dataclasses.replace(reply, server=self.base_url)

    def _status_error(self, error: openai.APIStatusError) -> Exception:
        """Returns the exception to raise for a response with an error status."""
        status = error.status_code
        # The library doesn't find the message in some servers' responses.
        words = error.response.text if error.message == f"Error code: {status}" else error.message
        said = f"HTTP {status}: {quote_words(words, self._hidden)}"
        quota = getattr(error, "code", None) == "insufficient_quota"
        return self._error_of(status, said, error.response.headers, quota=quota)

    def _error_of(
        self,
        status: int,
        said: str,
        headers: Mapping[str, str] | None = None,
        *,
        quota: bool = False,
    ) -> Exception:
        """Returns the exception to raise for an error.

        Args:
          status: the HTTP status.
          said: the server's words.
          headers: the response's headers.
          quota: whether the account's quota is used up.
        """
        if status in (403, 407, 502, 503, 504):  # which proxies answer too
            said += self._by_proxy()
        if status in (401, 403, 404, 407) or quota:
            return UserError(
                f"{self._client.base_url.host} answers {said}; check "
                f"{self._key_variable or 'the server'}, base_url and model, and run again to go on"
            )
        if status in (408, 409, 425, 429) or status >= 500:
            return Retry(said, after=retry_after(headers or {}))
        return Unanswerable(said, by_server=True)

    def _by_proxy(self) -> str:
        """Returns words for a reason's end on the proxy of requests; "" without one."""
        url = self._client.base_url
        host = f"{url.host}:{url.port}" if url.port else url.host
        proxies = urllib.request.getproxies_environment()
        kind = next((kind for kind in (url.scheme, "all") if kind in proxies), "")
        if not kind or urllib.request.proxy_bypass_environment(host):
            return ""
        # Not its address, which may hold a password.
        names = [name for name in _PROXIES if name.lower() == f"{kind}_proxy"]
        variable = next((name for name in reversed(names) if os.environ.get(name)), names[0])
        return (
            f", through the proxy that {variable} names (check it, or add {url.host} to NO_PROXY "
            "to go without)"
        )


def _connect(key: str, base_url: str, timeout: float) -> openai.AsyncOpenAI:
    """Returns the library's client; it sends nothing yet.

    Raises:
      ConfigError: the server's address or a proxy can't be used.
    """
    try:
        # Without the library's retries: `Asking` repeats requests, within the limits.
        client = openai.AsyncOpenAI(
            api_key=key, base_url=base_url or None, max_retries=0, timeout=timeout
        )
        url, problem = client.base_url, ""
        port = 80 if url.port is None else url.port
        if url.scheme not in ("http", "https") or not url.host or not 0 < port < 2**16:
            problem = "it has the form http://HOST:PORT/v1"
    except Exception as error:  # of the libraries below, for addresses and proxies
        problem = (str(error).splitlines() or [type(error).__name__])[0][:200]
        if any("@" in address for address in (base_url, *map(os.environ.get, _PROXIES)) if address):
            problem = "what is behind its @ is no HOST:PORT"  # the library may quote a password
    if problem:
        where = (
            f"base_url={without_secrets(base_url)}"
            if base_url
            else "the server's address (OPENAI_BASE_URL)"
        )
        raise ConfigError(
            f"{where} or a proxy can't be used: {problem}; correct it, or the proxies in the "
            "environment (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY)"
        )
    return client


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds that the header Retry-After asks to wait, given as a number or a date."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def content(parts: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Returns a message's content.

    Args:
      parts: in order, each ("text", words) or ("image", data URL).
    """
    return [
        {"type": "text", "text": value}
        if kind == "text"
        else {"type": "image_url", "image_url": {"url": value}}
        for kind, value in parts
    ]


def encode_image(root: Root, path: str, max_pixels: int) -> str:
    """Reads an image, shrinks it to at most `max_pixels`, and returns it as a data URL.

    Raises:
      DataError: the image can't be read.
    """
    return data_url(shrink(load_image(root, path), max_pixels))


def data_url(image: Image.Image) -> str:
    """Returns an image as a data URL of a JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
