"""Reading which image a part of a response names: in a field, a key, a table, or an object's ID.

What refers to an image is a number, an ordinal, "image N", the name of an image's file. Other text,
as in "picture": "oil painting", names none. A field that surely tells an image, but in words that
aren't understood, as in "target_image": "left", names one that is `UNCLEAR`.
"""

import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mirg_jax.grounding import grammar
from mirg_jax.grounding.image_words import (
    FROM_END,
    HAN_IMAGE,
    HAN_NUMBER,
    IMAGE,
    LABEL,
    NUMERAL,
    ORDINAL,
    OTHER,
    UNCLEAR,
    VAGUE,
    WORDING,
    find_image,
    find_wordings,
    is_0,
    read_number,
    read_wording,
)
from mirg_jax.mig_bench import image_tables

# Nouns that mean an image as the name of a field, but not in a sentence.
_FIELD_NOUN = rf"(?:{IMAGE}|page|panel|figure|fig|screenshot|scene|slide|{HAN_IMAGE})"
_ROLE = r"(?:source|index|idx|id|number|num|no|name|file|path|编号|序号|索引)"
_OF = (
    r"(?:(?:target|answer|in|on|box|bbox|object|selected|predicted|pred|prediction|chosen|found|located|"
    r"location|matched|matching|correct|best|result|output|final|detected|corresponding|containing|"
    r"which)[ _-]?){0,3}"
)
_QUOTES = r"[\"'*`]{0,3}"
_SUFFIX = r"\.(?:png|jpe?g|webp|bmp|gif|tiff?|avif)"
# The name of a field such as "image": 2, target_image=1, 'frame_id': "3", **Image:** 2, or its tag,
# as in <image>2</image>; `open` tells names that are surely not part of a sentence. What "images"
# names counts if it is a list of one. `other` is the beginning of a name that isn't understood.
_NAME = re.compile(
    r"(?<![A-Za-z0-9_])(?:(?P<open>[\"']|\{\s{0,3})?"
    rf"(?:(?P<of>{_OF})|(?<=[\"'])(?P<other>[a-z]{{1,20}}(?:[_-]|(?-i:(?=[A-Z])))))"
    rf"{_FIELD_NOUN}(?:(?P<plural>s|[ _-]?(?:{_ROLE}s|indices))|(?P<role>[ _-]?{_ROLE})?){_QUOTES}"
    r"\s{0,3}[:=：][*`]{0,3}\s{0,3}"
    rf"|(?P<tag><){_OF}{_FIELD_NOUN}[ _-]?{_ROLE}?>\s{{0,3}})",
    re.IGNORECASE,
)
# Beginnings of names of other images than the one that a box is in.
_OF_OTHERS = re.compile(
    r"(?:source|reference|ref|query|input|original|orig|template|base|first|last|num|total|max|per|"
    r"main|sub|previous|prev|next|other)[_-]?",
    re.IGNORECASE,
)
_OF_ANOTHER = re.compile(r"\b(?:reference|query|source|template|original)[ ]\Z", re.IGNORECASE)
# Before its value, if that is an object: {"index": 2}.
_INNER = rf"(?:\{{\s{{0,3}}[\"']?(?:{IMAGE}[ _-]?)?{_ROLE}[\"']?\s{{0,3}}[:=]\s{{0,3}})?"
# What may follow it. Not the word that tells what it is the number of, as in "image: 2 dogs".
_END = (
    r"(?=[*`]{0,3}\s{0,3}(?:[,;:|()}\[\]<>\n，。；]|\.(?!\d)|[–—-]\s"
    r"|(?:at|box|bbox|bounding box)\b"
    r"|\*\*(?:top|upper|bottom|lower|left|box|bbox|bounding|coord)|\Z))"
)
# Its value: 2, "Image-2", #2, 2.0, [2], image_2.png, "2nd", "the second image", "two", 2 of 3, "B".
_VALUE = re.compile(
    rf"{_INNER}(?P<list>[\[(]\s{{0,3}})?{_QUOTES}"
    rf"(?:(?:{IMAGE}[ #_-]{{0,2}}|{HAN_IMAGE}\s?|\#|no\. ?)?(?P<number>\d{{1,3}})"
    rf"(?:\.0{{1,9}}|{_SUFFIX})?(?:(?: of |/)\d{{1,3}})?"
    rf"|(?:{IMAGE}[ _-])?(?P<numeral>{NUMERAL}|{LABEL})"
    rf"|{HAN_IMAGE}?(?P<han>{HAN_NUMBER})|第(?P<nth>{HAN_NUMBER})[张幅个]?{HAN_IMAGE}?"
    rf"|(?:the )?(?P<ordinal>{ORDINAL})(?: (?:{IMAGE}|one))?(?P<from_end>{FROM_END})?)"
    rf"{_QUOTES}(?(list)\s{{0,3}}[\])]){_END}",
    re.IGNORECASE | re.ASCII,
)
# Other numbers, which can only be those of images that aren't there: -1, 1.5, [1, 2].
_OTHER_NUMBER = re.compile(
    rf"{_INNER}\[?\s{{0,3}}[\"']?-?\d[\d., ]{{0,30}}[\"']?\s{{0,3}}\]?\s{{0,3}}(?:[,;|}}\]\n]|\Z)",
    re.IGNORECASE | re.ASCII,
)
_TEXT = re.compile(
    rf"{_INNER}(?P<list>\[\s{{0,3}})?[\"'](?P<text>[^\"'\n]{{1,300}})[\"'](?(list)\s{{0,3}}\])",
    re.IGNORECASE,
)
# Values that are about images, but don't say which.
_VAGUE_VALUE = re.compile(
    rf"(?:the\s)?(?:left|right|top|bottom|upper|lower|middle|center|other|both|all|each|every|"
    rf"next|previous|query|reference)(?:[\s-]?(?:hand|most|one))?|.{{1,200}}{_SUFFIX}"
    rf"|[A-Z]|(?:the\s)?{VAGUE.pattern}",
    re.IGNORECASE | re.ASCII,
)
# A key that may be an image, as in {"Image 2": […]}, or such a heading before a list or an object.
_KEY = re.compile(
    r"(?P<quote>[\"'])(?P<key>[^\"'\n:]{1,80})(?P=quote)\s{0,3}:"
    rf"|(?P<heading>{WORDING.pattern})[*`)\]]{{0,3}}\s{{0,3}}[:：]"
    r"(?=[*`]{0,3}\s{0,3}(?:```\w{0,9}\s{1,3})?[\[{]\s{0,3}[^\]}\s])",
    re.IGNORECASE | re.ASCII,
)
_BETWEEN_WORDS = re.compile(r"[_-]|(?<=[a-z])(?=[A-Z])")
# The name of an image's file: "file_name": "image_2.png", filename=b.jpg.
_FILE = re.compile(
    rf"(?:(?<![A-Za-z0-9_])[\"']|(?<![\w\"'.])(?=file[ _-]?name)){_OF}file(?:[ _-]?(?:name|path))?"
    r"[\"'*`]{0,3}\s{0,3}[:=][*`]{0,3}\s{0,3}"
    r"(?:[\"'`](?P<quoted>[^\"'`\n]{1,300})[\"'`]|(?P<bare>[^\s\"'`,;|()}\[\]{]{1,300}))",
    re.IGNORECASE,
)
_OF_FILE = re.compile(
    rf"(?:.{{0,200}}[/\\])?(?:{IMAGE}[ #_-]{{0,2}})?(?P<number>\d{{1,3}}){_SUFFIX}",
    re.IGNORECASE | re.ASCII,
)
_A_FILE = re.compile(rf".{{1,299}}{_SUFFIX}", re.IGNORECASE)
_DIGITS = re.compile(r"\s?\d{1,3}\s?", re.ASCII)
_EMPTY = re.compile(r"\s{0,3}(?:\[\s{0,3}\]|\{\s{0,3}\}|null\b|None\b|\"\")")
_COLON = re.compile(r"[*`)\]]{0,3}\s?[:：]")
_OBJECT_ID = re.compile(
    f"{re.escape(grammar.ID_START)}([^<]{{0,40}}){re.escape(grammar.ID_END)}"
    rf"[^\w<]{{0,40}}(?:{re.escape(grammar.OBJECT_START)}[^<]{{0,400}}"
    rf"{re.escape(grammar.OBJECT_END)}[^\w<]{{0,40}})?\Z"
)
_LONGEST_ID = 600  # characters of an ID and a name behind it


class Field(NamedTuple):
    """A field that names an image, there or not (`OTHER`, `UNCLEAR`), and where it begins."""

    start: int
    image: int


class Key(NamedTuple):
    """The colon of a key or a heading, and the image that it names; None if it names none."""

    colon: int
    image: int | None


def has_image_0(text: str, box_starts: set[int]) -> bool:
    """Returns whether a field, a key or a heading names an image 0, so that images count from 0."""
    numbers = [value["number"] for _, value in _find_values(text, box_starts) if value]
    numbers += [
        value["number"]
        for _, cell in image_tables.find_cells(text)
        if (value := _VALUE.fullmatch(cell))
    ]
    numbers += [_number_of_file(name["quoted"] or name["bare"]) for name in _FILE.finditer(text)]
    if any(number and int(number) == 0 for number in numbers):
        return True
    keys = (found["key"] for found in _KEY.finditer(text) if found["key"])
    if any(is_0(words) for key in keys for words in find_wordings(_as_words(key))):
        return True
    return any(is_0(words) and _COLON.match(text, words.end()) for words in find_wordings(text))


def _find_values(text: str, box_starts: set[int]) -> Iterator[tuple[re.Match, re.Match | None]]:
    """Yields the names of fields, each with its value if that is of `_VALUE`'s form."""
    for name in _NAME.finditer(text):
        if _OF_ANOTHER.search(text, max(0, name.start() - 12), name.start()):
            continue
        if name["other"] and (_OF_OTHERS.fullmatch(name["other"]) or name["plural"]):
            continue
        value = _VALUE.match(text, name.end())
        is_tag = name["tag"] and value and not text.startswith("</", value.end())
        is_many = name["plural"] and text[name.end() : name.end() + 1] != "["
        if name.end() not in box_starts and not is_tag and not is_many:
            yield name, value


def find_fields(text: str, box_starts: set[int], images: Sequence[str], first: int) -> list[Field]:
    """Finds the fields and the rows of tables that name an image, there or not.

    Args:
      text: the response.
      box_starts: where its boxes begin.
      images: paths of the question's images.
      first: number that the response gives the first image, 1 or 0.
    """
    fields = []
    for name, value in _find_values(text, box_starts):
        image = None
        if name["other"]:
            image = UNCLEAR if value and value["number"] else None
        else:
            is_sure = bool(name["open"] and (name["of"] or name["role"]))
            image = _read_value(text, name, value, images, first, is_sure)
        if image is not None:
            fields.append(Field(name.start(), image))
    for name in _FILE.finditer(text):
        file = name["quoted"] or name["bare"]
        image, number = _find_file(file, images), _number_of_file(file)
        image = image or _find_file(pathlib.PurePosixPath(file).name, images)
        if number is not None:
            numbered = read_number(number, len(images), first)
            image = numbered if image in (None, numbered) else UNCLEAR
        elif image is None and _A_FILE.fullmatch(file):
            image = UNCLEAR
        if image is not None:
            fields.append(Field(name.start(), image))
    for start, cell in image_tables.find_cells(text):
        fields.append(Field(start, _read_cell(cell, images, first)))
    return sorted(fields)


def _number_of_file(name: str) -> str | None:
    """Returns the number of a file that is called by it, as "image_2.png"."""
    found = _OF_FILE.fullmatch(name)
    return found["number"] if found else None


def _read_value(
    text: str,
    name: re.Match,
    value: re.Match | None,
    images: Sequence[str],
    first: int,
    is_sure: bool,
) -> int | None:
    """Returns the image of a field; None if it names none.

    Args:
      text: the response.
      name: the field's name.
      value: its value, if that is of `_VALUE`'s form.
      images: paths of the question's images.
      first: number that the response gives the first image.
      is_sure: whether the name says that its value is an image.
    """
    image = _read_match(value, len(images), first) if value else None
    said = _TEXT.match(text, name.end()) if name["open"] else None
    is_one = name["open"] and not name["plural"]
    if named := said and _find_file(said["text"], images):
        if image not in (None, named):
            return UNCLEAR  # "1.jpg" may be the second image
        return named
    if value is None and is_one:
        if _OTHER_NUMBER.match(text, name.end()):
            return OTHER
        words = said and WORDING.fullmatch(_as_words(said["text"]).removeprefix("the "))
        if words:
            return read_wording(words, len(images), first)
        if said and (is_sure or _VAGUE_VALUE.fullmatch(said["text"])):
            return UNCLEAR
    return image


def _read_match(value: re.Match, num_images: int, first: int) -> int:
    """Returns the image of a match of `_VALUE`."""
    if nth := value["nth"]:
        return read_number(nth, num_images)
    number = value["number"] or value["numeral"] or value["han"]
    number = number or value["ordinal"] + (value["from_end"] or "")
    return read_number(number, num_images, first)


def _read_cell(cell: str, images: Sequence[str], first: int) -> int:
    """Returns the image that a cell of a table's column of images names."""
    if (value := _VALUE.fullmatch(cell)) is not None:
        return _read_match(value, len(images), first)
    image = _find_file(cell, images) or find_image(cell, len(images), first)
    return UNCLEAR if image is None else image


def find_keys(text: str, images: Sequence[str], first: int) -> Iterator[Key]:
    """Yields the keys of objects, such as "Image 2", and headings before an object or a list.

    Keys such as "2" may be the numbers of objects. They are images if one of them has nothing, as
    in {"1": [], "2": […]}, or if they don't begin with the first; otherwise they are `UNCLEAR`.
    Arguments are those of `find_fields`.
    """
    found = list(_KEY.finditer(text))
    numbered = [each for each in found if each["key"] and _DIGITS.fullmatch(each["key"])]
    lowest = min((int(each["key"]) for each in numbered), default=0)
    are_images = lowest > 1 or any(_EMPTY.match(text, each.end()) for each in numbered)
    if lowest == 0:
        first = 0 if numbered else first
    for each in found:
        key = each["key"] or each["heading"]
        image = _find_file(key, images)
        if each["key"] and _DIGITS.fullmatch(key):
            image = read_number(key.strip(), len(images), first) if are_images else UNCLEAR
        elif image is None:
            image = find_image(_as_words(key), len(images), first)
        yield Key(each.end() - 1, image)


def _as_words(name: str) -> str:
    """Returns the words of "second_image", "second-image" or "secondImage"."""
    return _BETWEEN_WORDS.sub(" ", name)


def _find_file(name: str, images: Sequence[str]) -> int | None:
    """Returns the number of the image whose file has a name; None if it isn't exactly one."""
    given = pathlib.PurePosixPath(name)
    for same in (
        lambda path: pathlib.PurePosixPath(path) == given,
        lambda path: pathlib.PurePosixPath(path).name == name,
        lambda path: not name.isdecimal() and pathlib.PurePosixPath(path).stem == name,
    ):
        if found := [number for number, path in enumerate(images, 1) if same(path)]:
            return found[0] if len(found) == 1 else None
    return None


def find_object_id(text: str, start: int, end: int) -> int | None:
    """Returns the image of the object's ID that a box has before it; None if it has none.

    Args:
      text: the response.
      start: where the box before it ends.
      end: where the box begins.
    """
    match = _OBJECT_ID.search(text[max(start, end - _LONGEST_ID) : end])
    if match is None:
        return None
    image, number = grammar.read_id(match[1]) or (OTHER, 0)
    return image if number else OTHER
