"""The fields of a row that holds a conversation about images, in the forms in which such data come.

MGrounding-630k, LLaVA, InternVL and LLaMA-Factory have `conversations: [{from: human|gpt, value}]`,
chat data `messages: [{role: user|assistant, content}]`; a name of one form is read in the other
too. Images are in `images`, in `image` (one or a list), or in parts of a content that is a list,
`{type: image, image: path}` or `{type: image_url, image_url: {url: path}}`, where the image's mark
then stands. What is null is as good as absent: a table's rows have all its columns.

A system message at the beginning is not used: `prompt.system` is that of all rows.
"""

from typing import Any, NamedTuple

from mirg_jax.data.json_rows import (
    IMAGE_FIELDS,
    image_path,
    images_field,
    list_field,
    quote,
    text_field,
    without_nulls,
)
from mirg_jax.errors import DataError

IMAGE_MARK = "<image>"
NAMES = ("conversations", "messages")

_ASKING, _ANSWERING, _SYSTEM = ("human", "user"), ("gpt", "assistant"), "system"
_IN_TURN = "the conversation is not human and gpt (or user and assistant) in turn"
_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image", "image_url", "input_image")


class Message(NamedTuple):
    """What one side says, as the row has it without nulls; `text` may turn out to be none."""

    row: dict[str, Any]

    @property
    def speaker(self) -> Any:
        """Who says it."""
        return self.row.get("from", self.row.get("role"))

    def text(self) -> str:
        """Returns what is said, with a mark for each image. Raises DataError if it isn't text."""
        name = self._name
        if not isinstance(self.row.get(name), list):
            return text_field(self.row, name)
        texts = []
        for part in list_field(self.row, name):
            kind = _kind(part)
            if kind == "text":
                texts.append(text_field(part, "text"))
            elif kind == "image":
                texts.append(IMAGE_MARK)
            else:
                raise DataError(f"a part of {name!r} is neither text nor an image")
        return "".join(texts)

    def marks(self) -> list[str | None]:
        """Returns the path of each image that is marked; None where only its place is marked.

        Raises:
          DataError: if a part holds an image, but no path of one.
        """
        value = self.row.get(self._name)
        if not isinstance(value, list):
            return [None] * str(value).count(IMAGE_MARK)
        found: list[str | None] = []
        for part in value:
            kind = _kind(part)
            if kind == "image":
                found.append(_path_in(part))
            elif kind == "text":
                found += [None] * str(part.get("text")).count(IMAGE_MARK)
        return found

    def has_image_parts(self) -> bool:
        """Returns whether images are parts of the content."""
        value = self.row.get(self._name)
        return isinstance(value, list) and any(_kind(part) == "image" for part in value)

    @property
    def _name(self) -> str:
        named = next((name for name in ("value", "content") if name in self.row), None)
        return named or ("content" if "role" in self.row else "value")


class Fields(NamedTuple):
    """What a row holds."""

    images: tuple[str, ...]
    turns: list[tuple[Message, Message]]  # a question and its answer


def read_fields(row: dict[str, Any]) -> Fields:
    """Reads a row with a conversation.

    Args:
      row: the row, without nulls.

    Raises:
      DataError: if a field is missing or of another type, the two sides don't speak in turn, or
        images stand where none can be used or are named differently in two places.
    """
    name = next((name for name in NAMES if name in row), NAMES[0])
    rows = list_field(row, name)
    if not all(isinstance(each, dict) for each in rows):
        raise DataError("a turn of the conversation is not an object")
    said = [Message(without_nulls(each)) for each in rows]
    if said[0].speaker == _SYSTEM:
        if said[0].has_image_parts():
            raise DataError("the system message has an image; move it to the question")
        said = said[1:]
    asked, answered = said[::2], said[1::2]
    sides = ((asked, _ASKING), (answered, _ANSWERING))
    if (
        not said
        or len(asked) != len(answered)
        or any(message.speaker not in names for side, names in sides for message in side)
    ):
        raise DataError(_IN_TURN)
    if any(message.has_image_parts() for message in answered):
        raise DataError("an answer has an image; move it to the question, or remove the row")
    if row.get("videos") or row.get("video"):
        raise DataError("the row has videos, which can't be used; remove it")
    return Fields(_images(row, asked), list(zip(asked, answered, strict=True)))


def _images(row: dict[str, Any], asked: list[Message]) -> tuple[str, ...]:
    """Returns the images beside the conversation, or else those that are parts of it."""
    marks = [path for message in asked for path in message.marks()]
    inside = [path for path in marks if path is not None]
    if inside and not row.get("images") and not row.get("image"):
        return tuple(inside)
    images = images_field(row)
    for path, image in zip(marks, images, strict=False):  # too many marks are another error
        if path not in (None, image):
            raise DataError(
                f"the conversation has image {quote(path)} where 'images' has {quote(image)}; "
                "remove the wrong one, or 'images'"
            )
    return images


def _kind(part: Any) -> str:
    """Returns "text" or "image" for such a part of a content, "" for any other."""
    if not isinstance(part, dict):
        return ""
    given = without_nulls(part)
    kind = given.get("type")
    if kind is None:  # as Qwen's own service has it
        kind = next((name for name in ("image", "image_url", "text") if name in given), "")
    return "text" if kind in _TEXT_PARTS else "image" if kind in _IMAGE_PARTS else ""


def _path_in(part: dict[str, Any]) -> str | None:
    """Returns the path in an image's part; None if it only marks the image's place."""
    named = any(part.get(name) is not None for name in IMAGE_FIELDS)
    return image_path(part) if named else None
