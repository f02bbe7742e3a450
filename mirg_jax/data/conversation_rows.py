"""The fields of a row that holds a conversation about images, in the forms in which such data come.

MGrounding-630k, LLaVA and InternVL have `conversations: [{from: human|gpt, value}]`, chat data
`messages: [{role: user|assistant, content}]`; a name of one form is read in the other too. Images
are paths in `images`, in `image` (a path or a list of them), or in parts of a content that is a
list, `{type: image, image: path}`, where the image's mark then stands.

A system message at the beginning is not used: `prompt.system` is that of all rows.
"""

from typing import Any, NamedTuple

from mirg_jax.data.json_rows import images_field, list_field, text_field
from mirg_jax.errors import DataError

IMAGE_MARK = "<image>"
NAMES = ("conversations", "messages")

_ASKING, _ANSWERING, _SYSTEM = ("human", "user"), ("gpt", "assistant"), "system"
_IN_TURN = "the conversation is not human and gpt (or user and assistant) in turn"


class Message(NamedTuple):
    """What one side says, as the row has it; `text` may turn out to be none."""

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
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text":
                texts.append(text_field(part, "text"))
            elif kind == "image":
                texts.append(IMAGE_MARK)
            else:
                raise DataError(f"a part of {name!r} is neither text nor an image")
        return "".join(texts)

    def count_marks(self) -> int:
        """Returns the number of images that are marked, whatever else there is."""
        value = self.row.get(self._name)
        if not isinstance(value, list):
            return str(value).count(IMAGE_MARK)
        texts = [str(part.get("text", "")) for part in _objects(value)]
        images = sum(part.get("type") == "image" for part in _objects(value))
        return images + sum(text.count(IMAGE_MARK) for text in texts)

    def images(self) -> list[str]:
        """Returns the paths of images that are parts of the content."""
        parts = self.row.get(self._name)
        named = (part.get("image") for part in _objects(parts) if part.get("type") == "image")
        return [path for path in named if isinstance(path, str) and path]

    @property
    def _name(self) -> str:
        return "content" if "content" in self.row and "value" not in self.row else "value"


class Fields(NamedTuple):
    """What a row holds."""

    images: tuple[str, ...]
    turns: list[tuple[Message, Message]]  # a question and its answer


def read_fields(row: dict[str, Any]) -> Fields:
    """Reads a row with a conversation.

    Raises:
      DataError: if a field is missing or of another type, or the two sides don't speak in turn.
    """
    name = next((name for name in NAMES if name in row), NAMES[0])
    rows = list_field(row, name)
    if not all(isinstance(each, dict) for each in rows):
        raise DataError("a turn of the conversation is not an object")
    said = [Message(each) for each in rows]
    if said[0].speaker == _SYSTEM:
        said = said[1:]
    asked, answered = said[::2], said[1::2]
    sides = ((asked, _ASKING), (answered, _ANSWERING))
    if (
        not said
        or len(asked) != len(answered)
        or any(message.speaker not in names for side, names in sides for message in side)
    ):
        raise DataError(_IN_TURN)
    inside = [path for message in asked for path in message.images()]
    beside = not inside or any(row.get(name) is not None for name in ("images", "image"))
    images = images_field(row) if beside else tuple(inside)
    return Fields(images, list(zip(asked, answered, strict=True)))


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
