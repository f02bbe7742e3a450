"""JSON files element by element, so that a file of any size takes little memory."""

import codecs
import json
import pathlib
import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from mirg_jax.data import file_kinds
from mirg_jax.errors import DataError
from mirg_jax.files import places

_CHUNK = 1 << 20  # bytes that are read at a time
_LONGEST = 1 << 26  # characters of one element
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")


class Element(NamedTuple):
    """An element of an array; `key` is the array's name in the file's object, "" without one."""

    key: str
    number: int  # in its array, from 0
    value: Any


def elements(path: pathlib.Path, keys: Collection[str] = ()) -> Iterator[Element]:
    """Yields the elements of a JSON list, of JSON lines, or of arrays within an object.

    Args:
      path: the file.
      keys: names of the arrays of the file's object; without any, the file is a list or lines.

    Raises:
      DataError: the file is missing, cut, or of another form.
    """
    try:
        with places.open_file(path) as file:
            text = _Text(path, file)
            yield from _of_object(text, keys) if keys else _of_list(text)
            if text.peek():
                text.fail("something follows behind the end")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def _of_object(text: "_Text", keys: Collection[str]) -> Iterator[Element]:
    if text.peek() != "{":
        text.fail(f"an object with {', '.join(keys)} is needed")
    for _ in text.items("{", "}"):
        key = text.value()
        text.skip(":")
        if key in keys:
            if text.peek() != "[":
                text.fail(f"{key!r} is not a list")
            for number, _ in enumerate(text.items("[", "]")):
                yield Element(key, number, text.value())
        else:
            text.value()


def _of_list(text: "_Text") -> Iterator[Element]:
    if text.peek() == "[":
        for number, _ in enumerate(text.items("[", "]")):
            yield Element("", number, text.value())
        return
    number = 0
    while text.peek():
        yield Element("", number, text.value())
        number += 1


class _Text:
    """A text that is read as far as it is needed."""

    def __init__(self, path: pathlib.Path, file: Any):
        self._path, self._file = path, file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._buffer, self._at, self._line, self._ended = "", 0, 1, False

    def peek(self) -> str:
        """Returns the next character that is no space; "" at the end."""
        while True:
            self._at = _SPACE.match(self._buffer, self._at).end()
            if self._at < len(self._buffer) or not self._more():
                return self._buffer[self._at : self._at + 1]

    def skip(self, sign: str) -> None:
        """Passes over a sign, which must come next."""
        if self.peek() != sign:
            self.fail(f"{sign!r} is needed")
        self._at += 1

    def items(self, begin: str, end: str) -> Iterator[None]:
        """Yields before each item of a list or an object, which the caller then reads."""
        self.skip(begin)
        if self.peek() != end:
            yield
            while self.peek() == ",":
                self._at += 1
                yield
        self.skip(end)

    def value(self) -> Any:
        """Reads a value."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._at)
                # A number may go on behind the buffer.
                if end < len(self._buffer) or not self._more():
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or error.pos > len(self._buffer) - 10
                if not is_cut or not self._more():
                    self.fail(error.msg)
            except (ValueError, RecursionError) as error:  # numbers too long, nesting too deep
                self.fail(str(error))

    def fail(self, what: str) -> None:
        """Raises DataError for the current place."""
        if kind := file_kinds.looks_like(self._buffer[:4096].encode()):
            raise DataError(f"{self._path}: looks like {kind[0]}, where JSON is needed; {kind[1]}")
        line = self._line + self._buffer.count("\n", 0, self._at)
        raise DataError(
            f"{self._path}: not usable JSON from line {line} on ({what}); the file may be cut or "
            "of another form, get or make it again"
        )

    def _more(self) -> bool:
        """Reads on; returns False at the file's end."""
        if self._ended:
            return False
        self._line += self._buffer.count("\n", 0, self._at)
        self._buffer, self._at = self._buffer[self._at :], 0
        if len(self._buffer) > _LONGEST:
            self.fail(f"an element has more than {_LONGEST} characters")
        data = self._file.read(max(_CHUNK, len(self._buffer)))
        self._ended = not data
        try:
            self._buffer += self._decoder.decode(data, final=not data)
        except UnicodeDecodeError:
            if kind := file_kinds.looks_like(data):
                raise DataError(f"{self._path}: looks like {kind[0]}; {kind[1]}") from None
            raise DataError(f"{self._path}: not UTF-8 text; save it as UTF-8") from None
        return True
