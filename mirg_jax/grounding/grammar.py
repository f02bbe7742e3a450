"""The format of responses: formatting and parsing.

    <think>reasoning</think><answer>objects</answer>

The first mention of an object consists of its ID, its name and its box:

    <bbox_id>[N-M]</bbox_id><|object_ref_start|>name<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>

N is the image and M the object in that image, both counted from 1. Later mentions are the ID only.
Boxes follow `boxes.py`. Text must be decoded with special tokens kept, since the format uses them.

Parsing never raises an exception and takes time linear in the length of the text, whatever a policy
samples: the text is split at the tokens, and each piece is processed a fixed number of times.
"""  # noqa: E501

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mirg_jax.grounding.boxes import Box, is_valid

THINK_START = "<think>"
THINK_END = "</think>"
ANSWER_START = "<answer>"
ANSWER_END = "</answer>"
ID_START = "<bbox_id>"
ID_END = "</bbox_id>"
OBJECT_START = "<|object_ref_start|>"
OBJECT_END = "<|object_ref_end|>"
BOX_START = "<|box_start|>"
BOX_END = "<|box_end|>"
END_OF_TURN = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"

_BLOCKS = (THINK_START, THINK_END, ANSWER_START, ANSWER_END)
_BLOCK = re.compile("|".join(map(re.escape, _BLOCKS)))
_END_OF = {ID_START: ID_END, OBJECT_START: OBJECT_END, BOX_START: BOX_END}
_PART = re.compile("(" + "|".join(map(re.escape, (*_END_OF, *_END_OF.values()))) + ")")
_TOKEN = re.compile(f"{_BLOCK.pattern}|{_PART.pattern}")
_WORD = re.compile(r"\w")
# No quantifier matches across a "<", so that matching takes linear time for any text.
_NOT_PROSE = re.compile(
    f"{re.escape(ID_START)}[^<]*{re.escape(ID_END)}"
    f"|{re.escape(BOX_START)}[^<]*{re.escape(BOX_END)}|{_TOKEN.pattern}"
)
_POINT = r"\s*\(\s*(-?\d+)\s*,\s*(-?\d+)\s*\)\s*"
_BOX = re.compile(f"{_POINT},{_POINT}", re.ASCII)
_ID = re.compile(r"\s*\[\s*(\d{1,4})\s*-\s*(\d{1,4})\s*\]\s*", re.ASCII)
_ID_PART = re.compile(f"{re.escape(ID_START)}([^<]*){re.escape(ID_END)}")

ORDINALS = tuple(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
)
_LAST = ("last", "final")
_SOURCE = "source"  # region questions refer to "a source image followed by its several regions"
_WORDS = "|".join((*ORDINALS, *_LAST, _SOURCE))
_IMAGE = r"(?:image|picture|photo|frame)"
# The words that name an image, by a number or an ordinal.
_WORDING = re.compile(
    rf"\b(?:(?P<word>{_WORDS})|(?P<suffixed>\d{{1,3}})(?:st|nd|rd|th))\s{{1,2}}{_IMAGE}\b"
    rf"|\b{_IMAGE}[\s#_-]{{0,2}}(?P<number>\d{{1,3}})\b",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True)
class GroundedObject:
    """A box and, if known, its image, its number within that image, and its name."""

    box: Box
    image: int | None = None  # from 1
    number: int | None = None  # from 1
    label: str = ""


@dataclass(frozen=True)
class Response:
    """A parsed response.

    Attributes:
      thinking: the text inside the think block; None without such a block.
      answer: the text inside the answer block; None without such a block.
      mentions: the objects with a box inside the think block.
      objects: the objects of the answer. Their `image` is None or in 1..num_images.
      format_ok: whether there is one think block, then one answer block with a valid box, no other
        text, and no image index outside 1..num_images; of a direct answer, the same without the
        think block.
      problems: descriptions of format errors, one line each.
    """

    thinking: str | None
    answer: str | None
    mentions: tuple[GroundedObject, ...]
    objects: tuple[GroundedObject, ...]
    format_ok: bool
    problems: tuple[str, ...]


def format_id(image: int, number: int) -> str:
    """Formats an object's ID."""
    return f"{ID_START}[{image}-{number}]{ID_END}"


def format_box(box: Box) -> str:
    """Formats a box with its tokens.

    Raises:
      ValueError: if the box is empty, inverted or not on the grid.
    """
    if not is_valid(box):
        raise ValueError(f"not a box on the grid: {box}")
    x1, y1, x2, y2 = box
    return f"{BOX_START}({x1},{y1}),({x2},{y2}){BOX_END}"


def format_object(obj: GroundedObject) -> str:
    """Formats an object's first mention: ID (if image and number are known), name (if any), box.

    Raises:
      ValueError: if the box is invalid, or the name contains a token of the format.
    """
    if _TOKEN.search(obj.label):
        raise ValueError(f"object name contains a token of the response format: {obj.label!r}")
    identity = ""
    if obj.image is not None and obj.number is not None:
        identity = format_id(obj.image, obj.number)
    name = f"{OBJECT_START}{obj.label}{OBJECT_END}" if obj.label else ""
    return identity + name + format_box(obj.box)


def format_answer(objects: Iterable[GroundedObject]) -> str:
    """Formats the text inside the answer block."""
    return " ".join(map(format_object, objects))


def format_response(thinking: str, answer: str) -> str:
    """Formats a response from the texts of its two blocks."""
    return f"{THINK_START}{thinking}{THINK_END}{ANSWER_START}{answer}{ANSWER_END}"


def prose(text: str) -> str:
    """Removes IDs, boxes and tokens from a text; names of objects are kept."""
    return _NOT_PROSE.sub("", text)


def read_id(content: str) -> tuple[int, int] | None:
    """Parses the text between the tokens of an ID.

    Returns:
      Image and number, or None if the text is not an ID.
    """
    match = _ID.fullmatch(content)
    return (int(match[1]), int(match[2])) if match else None


def renumber(text: str, numbers: Mapping[tuple[int, int], int]) -> str:
    """Replaces object numbers in a text's IDs: `numbers[image, old] = new`."""

    def new(match: re.Match) -> str:
        key = read_id(match[1])
        return format_id(key[0], numbers[key]) if key in numbers else match[0]

    return _ID_PART.sub(new, text)


def find_image_index(text: str, num_images: int | None = None) -> int | None:
    """Returns the image (from 1) mentioned last in a text; None if there is none or it is invalid.

    Recognises "the third image", "the 3rd image", "2th image", "Image-3", "image 3", "the source
    image" (the first) and, if `num_images` is given, "the last image". The last mention is used
    because questions end with the image to search: "the object marked in the first image ... locate
    it in the second image".
    """
    named = _last_wording(text, num_images)
    return named if named is not None and _exists(named, num_images) else None


def find_objects(
    text: str, num_images: int | None = None
) -> tuple[tuple[GroundedObject, ...], tuple[str, ...]]:
    """Finds the objects with a valid box in any text, such as a plain MGrounding answer.

    Returns:
      The objects, and one line for each problem, such as a box that is not valid.
    """
    scan = _Scan(text, num_images)
    return tuple(scan.objects()), tuple(scan.problems)


def parse_response(text: str, num_images: int | None = None, *, direct: bool = False) -> Response:
    """Parses a model's response.

    The answer's objects are its boxes in order, and its IDs whose box was given in the think block.
    A box without an ID takes its image from the text before it. Without an answer block, the
    objects are those of the text after the think block. Boxes that are inverted, off the grid or
    unreadable are omitted and described in `problems`.

    Args:
      text: any string, decoded with special tokens kept.
      num_images: number of images in the prompt, to check indices and to resolve "the last image".
      direct: whether an answer without thoughts was asked for.
    """
    text = without_ending(text)
    tags = list(_BLOCK.finditer(text))
    thinking, answer, rest = _blocks(text, tags)
    problems = _structure_problems(text, tags, direct)

    thoughts = _Scan(thinking or "", num_images)
    said = _Scan(rest if answer is None else answer, num_images)
    mentions = tuple(thoughts.objects())
    objects = tuple(said.objects(known=mentions))
    if not objects:
        problems.append("the answer contains no valid box")
    format_ok = not problems and thoughts.images_exist and said.images_exist
    problems += thoughts.problems + said.problems
    return Response(thinking, answer, mentions, objects, format_ok, tuple(problems))


def without_ending(text: str, endings: tuple[str, ...] = (END_OF_TURN, END_OF_TEXT)) -> str:
    """Strips end tokens and white space from the end.

    Args:
      text: the text.
      endings: the end tokens.
    """
    end = len(text)
    while end:
        if ending := next((token for token in endings if text.endswith(token, 0, end)), None):
            end -= len(ending)
        elif text[end - 1].isspace():
            end -= 1
        else:
            break
    return text[:end]


def _blocks(text: str, tags: list[re.Match]) -> tuple[str | None, str | None, str]:
    """Returns the content of the think block, of the answer block, and the text after the thoughts.

    A block without a closing tag extends to the end of the text (a think block: to the answer), so
    that boxes in truncated thoughts are never taken for an answer. Without an opening tag the
    thoughts start at the beginning, since chat templates may put that tag into the prompt.
    """

    def find(tag: str, start: int = 0) -> re.Match | None:
        return next((match for match in tags if match[0] == tag and match.start() >= start), None)

    opening = find(THINK_START)
    begin = opening.end() if opening else 0
    closing = find(THINK_END, begin)
    thinking, after = None, 0
    if closing:
        thinking, after = text[begin : closing.start()], closing.end()
    elif opening:
        cut = find(ANSWER_START, begin)
        after = cut.start() if cut else len(text)
        thinking = text[begin:after]

    answer = None
    if opening := find(ANSWER_START, after) or find(ANSWER_START):
        closing = find(ANSWER_END, opening.end())
        answer = text[opening.end() : closing.start() if closing else len(text)]
    return thinking, answer, text[after:]


def _structure_problems(text: str, tags: list[re.Match], direct: bool) -> list[str]:
    """Checks that the text is exactly the blocks that were asked for; returns problems."""
    if [match[0] for match in tags] != list(_BLOCKS[2:] if direct else _BLOCKS):
        asked = (
            "one answer block alone" if direct else "one think block followed by one answer block"
        )
        return [f"not {asked}"]
    starts = [0, *(tag.end() for tag in tags[1::2])]
    ends = [*(tag.start() for tag in tags[::2]), len(text)]
    if any(text[start:end].strip() for start, end in zip(starts, ends, strict=True)):
        return [f"text outside the {'answer block' if direct else 'think and answer blocks'}"]
    return []


class _Scan:
    """Scans a text once for objects and bare IDs, in order, and for problems.

    An ID and a name belong to the box that follows them with only space and punctuation in between.
    An ID followed by anything else is bare: a later mention of an object.
    """

    def __init__(self, text: str, num_images: int | None):
        self.problems: list[str] = []
        self.images_exist = True
        self._num_images = num_images
        self._found: list[GroundedObject | tuple[int, int]] = []
        self._identity: tuple[int | None, int | None] | None = None  # of the next box
        self._label = ""  # of the next box
        self._image: int | None = None  # mentioned last in the text so far

        pieces = _PART.split(text)  # prose, token, prose, token, ..., prose
        self._prose(pieces[0])
        i = 1
        while i < len(pieces):
            token, content = pieces[i : i + 2]
            if pieces[i + 2 : i + 3] == [_END_OF.get(token)]:
                self._part(token, content)
                self._prose(pieces[i + 3])
                i += 4
            else:
                self.problems.append(f"{token} without its counterpart")
                self._release()
                self._prose(content)
                i += 2
        self._release()

    def objects(self, known: Iterable[GroundedObject] = ()) -> Iterable[GroundedObject]:
        """Yields the objects, with bare IDs resolved.

        An ID that repeats an object of this text is not a second object.

        Args:
          known: objects of an earlier text, to which a bare ID may refer.
        """
        by_id: dict[tuple[int | None, int | None], GroundedObject] = {}
        for obj in known:
            by_id.setdefault((obj.image, obj.number), obj)
        given = set()
        for item in self._found:
            if isinstance(item, GroundedObject):
                given.add((item.image, item.number))
                yield item
            elif item not in given:
                given.add(item)
                if item in by_id:
                    yield by_id[item]
                else:
                    self.problems.append(f"id [{item[0]}-{item[1]}] was not given a box before")

    def _prose(self, text: str) -> None:
        if _WORD.search(text):
            self._release()
            named = _last_wording(text, self._num_images)
            self._image = self._image if named is None else named

    def _part(self, token: str, content: str) -> None:
        if token == OBJECT_START:
            self._label = content.strip()
        elif token == ID_START:
            self._release()
            image, number = read_id(content) or (0, 0)
            if number > 0 and _exists(image, self._num_images):
                self._identity = image, number
            else:
                self._identity = None, None
                self._no_image(f"not the id of an image and an object: {_quote(content)}")
        else:
            if box := _read_box(content):
                image, number = self._identity or (self._image, None)
                if image is not None and not _exists(image, self._num_images):
                    self._no_image(f"a box refers to image {image}, which is not there")
                    image = None
                self._found.append(GroundedObject(box, image, number, self._label))
            else:
                self.problems.append(f"not a box on the grid: {_quote(content)}")
            self._identity, self._label = None, ""

    def _release(self) -> None:
        """Records a pending ID as bare and clears the pending ID and name."""
        match self._identity:
            case (int(image), int(number)):
                self._found.append((image, number))
        self._identity, self._label = None, ""

    def _no_image(self, problem: str) -> None:
        self.images_exist = False
        self.problems.append(problem)


def _read_box(content: str) -> Box | None:
    match = _BOX.fullmatch(content)
    # Coordinates have at most four digits, and int() raises for strings of thousands of digits.
    if match is None or max(map(len, match.groups())) > 4:
        return None
    x1, y1, x2, y2 = map(int, match.groups())
    return (x1, y1, x2, y2) if is_valid((x1, y1, x2, y2)) else None


def _last_wording(text: str, num_images: int | None) -> int | None:
    """Returns the image index mentioned last, in range or not."""
    match = None
    for match in _WORDING.finditer(text):  # noqa: B007
        pass
    if match is None:
        return None
    if number := match["suffixed"] or match["number"]:
        return int(number)
    word = match["word"].lower()
    if word in _LAST:
        return num_images
    return 1 if word == _SOURCE else ORDINALS.index(word) + 1


def _exists(image: int, num_images: int | None) -> bool:
    return image >= 1 and (num_images is None or image <= num_images)


def _quote(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
