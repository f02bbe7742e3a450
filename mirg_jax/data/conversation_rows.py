"""The fields of a row that holds a conversation about images, in the forms in which such data come.

MGrounding-630k, LLaVA, InternVL and LLaMA-Factory have `conversations: [{from: human|gpt, value}]`,
chat data `messages: [{role: user|assistant, content}]`, ms-swift `query` and `response`, with
`history: [[query, response], …]` before them. A name of one form is read in another too, and
speakers in any case. Images are in `images`, in `image` (one or a list), or in parts of a content
that is a list, `{type: image, image: path}` or `{type: image_url, image_url: {url: path}}`, where
the image's mark then stands. What is null is as good as absent, and so is an empty list: a table's
rows have all its columns.

Images are numbered from 1 in the order of their marks and parts over the whole conversation; those
without a mark come first. A part may name one of `images`, by its path or, as in data sets of
Hugging Face, by its `index` from 0. A question is about the images that stand before it or in it.

A system message at the beginning is not used: `prompt.system` is that of all rows.
"""

import posixpath
from typing import Any, NamedTuple

from mirg_jax.data.json_rows import (
    IMAGE_FIELDS,
    image_path,
    images_field,
    list_field,
    quote,
    text_field,
    whole_number,
    without_nulls,
)
from mirg_jax.errors import DataError

IMAGE_MARK = "<image>"
NAMES = ("conversations", "messages")
PAIR = ("query", "response")

# ShareGPT's own files say "chatgpt" too.
_ASKING, _ANSWERING, _SYSTEM = ("human", "user"), ("gpt", "chatgpt", "assistant"), "system"
_IN_TURN = "the conversation is not human and gpt (or user and assistant) in turn"
_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image", "image_url", "input_image")
# Where chat data have the thoughts of an answer: DeepSeek's and Qwen's form, and those of servers.
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")

# Fields by which data sets say that an answer is not to be learned, if they are false or 0.
_LEARNED = ("loss", "loss_scale", "train", "weight", "kto_tag")

# What a mark says of its image: its path, its index in `images`, or nothing.
Mark = str | int | None


class Message(NamedTuple):
    """What one side says, as the row has it without nulls; `text` may turn out to be none."""

    row: dict[str, Any]

    @property
    def speaker(self) -> Any:
        """Who says it, in lower case."""
        name = self.row.get("from", self.row.get("role"))
        return name.strip().lower() if isinstance(name, str) else name

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

    def thoughts(self) -> str:
        """Returns the thoughts that stand beside what is said; "" if there are none.

        Raises:
          DataError: if they aren't text, or differ between two fields.
        """
        found = {text_field(self.row, name).strip() for name in _THOUGHTS if name in self.row}
        found.discard("")
        if len(found) > 1:
            names = [name for name in _THOUGHTS if name in self.row]
            raise DataError(f"an answer has different thoughts in {' and '.join(names)}")
        return found.pop() if found else ""

    def marks(self) -> list[Mark]:
        """Returns what each mark says of its image, in their order.

        Raises:
          DataError: if a part holds an image, but no path of one.
        """
        value = self.row.get(self._name)
        if not isinstance(value, list):
            return [None] * str(value).count(IMAGE_MARK)
        found: list[Mark] = []
        for part in value:
            kind = _kind(part)
            if kind == "image":
                found.append(_image_of(part))
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


def check_learned(row: dict[str, Any]) -> None:
    """Checks that a row, or an answer in it, is not marked as one that is not to be learned.

    Raises:
      DataError: if it is.
    """
    if marked := [name for name in _LEARNED if row.get(name) in (False, 0)]:
        raise DataError(f"{marked[0]!r} says that the answer is not to be learned")


class Turn(NamedTuple):
    """A question, its answer and the images that stand before the question or in it.

    Attributes:
      asked: the question.
      answered: its answer.
      images: the paths, in their order.
      keeps: whether each mark of the question shows an image; one that names an image which has
        been shown does not.
    """

    asked: Message
    answered: Message
    images: tuple[str, ...]
    keeps: tuple[bool, ...]

    def question(self) -> str:
        """Returns the question with a mark for each image in it.

        Raises:
          DataError: if it isn't text.
        """
        first, *others = self.asked.text().split(IMAGE_MARK)
        for keep, text in zip(self.keeps, others, strict=True):
            first += IMAGE_MARK * keep + text
        return first


class Fields(NamedTuple):
    """What a row holds."""

    images: tuple[str, ...]
    turns: list[Turn]


def is_conversation(row: dict[str, Any]) -> bool:
    """Returns whether a row, without nulls, has the fields of a conversation."""
    return not row.keys().isdisjoint(NAMES) or row.keys() >= {*PAIR}


def read_fields(row: dict[str, Any]) -> Fields:
    """Reads a row with a conversation.

    Args:
      row: the row, without nulls.

    Raises:
      DataError: if a field is missing or of another type, the two sides don't speak in turn, or
        images stand where none can be used, are named differently in two places, or are in an
        unclear order.
    """
    said = [Message(without_nulls(each)) for each in _messages(row)]
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

    marks = [message.marks() for message in asked]
    images = _images(row, [mark for found in marks for mark in found])
    keeps = _place(images, marks)
    count = len(images) - sum(map(sum, keeps))  # those without a mark
    turns = []
    for question, answer, kept in zip(asked, answered, keeps, strict=True):
        count += sum(kept)
        turns.append(Turn(question, answer, images[:count], tuple(kept)))
    return Fields(images, turns)


def _messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the messages of a row in any of the forms."""
    given = [name for name in NAMES if name in row]
    filled = [name for name in given if row[name] != []]
    if not filled and row.keys() >= {*PAIR}:
        history = row.get("history", [])
        if not isinstance(history, list) or not all(map(_is_pair, history)):
            raise DataError(
                "'history' is not a list of pairs [query, response]; write the conversation as "
                "'messages' instead"
            )
        pairs = [*history, [row[each] for each in PAIR]]
        sides = ("user", "assistant")
        return [
            {"role": side, "content": text}
            for pair in pairs
            for side, text in zip(sides, pair, strict=True)
        ]
    rows = list_field(row, (*filled, *given, NAMES[0])[0])
    if not all(isinstance(each, dict) for each in rows):
        raise DataError("a turn of the conversation is not an object")
    return rows


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and [type(each) for each in value] == [str, str]


# Images -------------------------------------------------------------------------------------------


def _images(row: dict[str, Any], marks: list[Mark]) -> tuple[str, ...]:
    """Returns the images beside the conversation, or else those that are parts of it."""
    inside = [mark for mark in marks if isinstance(mark, str)]
    if not inside or row.get("images") or row.get("image"):
        return images_field(row)
    paths = [posixpath.normpath(path) for path in inside]
    twice = [path for path in paths if paths.count(path) > 1]
    if twice:
        raise DataError(
            f"image {quote(twice[0])} is in the conversation twice, so the images' numbers are "
            "unclear; list each image once in 'images'"
        )
    if any(isinstance(mark, int) for mark in marks):
        raise DataError("a part names an image by its index, but the row has no 'images'")
    return tuple(inside)


def _place(images: tuple[str, ...], marks: list[list[Mark]]) -> list[list[bool]]:
    """Returns for each message which of its marks show an image, and not one shown before.

    Raises:
      DataError: if there are more marks than images, or the marks show others, or in another order
        than `images` has.
    """
    shown: set[int] = set()
    keeps, places = [], []
    for found in marks:
        keeps.append([])
        for mark in found:
            meant = _find(mark, images) if mark is not None else None
            new = None if meant is None else [number for number in meant if number not in shown]
            keeps[-1].append(new != [])
            if new != []:
                places.append((mark, meant))
            if new:
                shown.add(new[0])
    if len(places) > len(images):
        raise DataError(
            f"the question has {len(places)} {IMAGE_MARK} marks for {len(images)} images"
        )
    for number, (mark, meant) in enumerate(places, start=len(images) - len(places)):
        if meant is not None and number not in meant:
            what = f"image {quote(mark)}" if isinstance(mark, str) else f"the image of index {mark}"
            raise DataError(
                f"the conversation has {what} where 'images' has {quote(images[number])}; remove "
                "the wrong one, or 'images' (those without a mark come first)"
            )
    return keeps


def _find(mark: str | int, images: tuple[str, ...]) -> list[int]:
    """Returns the numbers, from 0, of the images that a mark may name."""
    if isinstance(mark, int):
        if not 0 <= mark < len(images):
            raise DataError(f"a part has index {mark}, which is none of 0..{len(images) - 1}")
        return [mark]
    path = posixpath.normpath(mark)
    found = [number for number, image in enumerate(images) if posixpath.normpath(image) == path]
    if not found:
        raise DataError(
            f"the conversation has image {quote(mark)} where 'images' has {quote([*images])}; "
            "remove the wrong one, or 'images'"
        )
    return found


def _kind(part: Any) -> str:
    """Returns "text" or "image" for such a part of a content, "" for any other."""
    if not isinstance(part, dict):
        return ""
    given = without_nulls(part)
    kind = given.get("type")
    if kind is None:  # as Qwen's own service has it
        kind = next((name for name in ("image", "image_url", "text") if name in given), "")
    return "text" if kind in _TEXT_PARTS else "image" if kind in _IMAGE_PARTS else ""


def _image_of(part: dict[str, Any]) -> Mark:
    """Returns the path or the index in an image's part; None if it only marks the image's place."""
    if any(part.get(name) is not None for name in IMAGE_FIELDS):
        return image_path(part)
    index = part.get("index")
    if index is not None and whole_number(index) is None:
        raise DataError(f"a part's index is {quote(index)}, not an integer")
    return whole_number(index)
