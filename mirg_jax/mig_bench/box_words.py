"""Words around a box that name its image, apart from those that refer to another or compare."""

import re
from typing import NamedTuple

from mirg_jax.grounding.image_words import (
    IMAGE,
    ORDINAL,
    UNCLEAR,
    WORDING,
    find_wordings,
    read_wording,
)

_FAR = 80  # characters before words for an image that are looked at
_SENTENCE = re.compile(r"[.;!?\n。；？！](?!\d)")
# Denials further away: "no dog in image 1", "could not find it in image 1".
_DENIED = re.compile(
    r"(?:\b(?:no(?!\s(?:doubt|other))|not(?!\sonly)|none|never|without|missing|absent)|n['’]t)\b"
    r"(?:(?!\bbut\b)[^.,;:!?\n]){0,40}\s(?:in|on|or|and|nor|from)(?:\s(?:the|this))?\s?\Z",
    re.IGNORECASE,
)
_HEADS = re.compile(r"[\s*`)\]]{0,3}(?:[:：]|has\b|shows?\b|contains?\b)", re.IGNORECASE)
# Before words for an image that a box isn't in: "the dog marked in image 1", "as in image 1".
_COMPARED = re.compile(
    r"(?:\b(?:cf\.|vs\.?|versus|see)|\b(?:(?:marked|boxed|circled|highlighted|outlined|framed|indicated|given|annotated|specified)"
    r"(?:\s[^,.;:!?\n]{0,40})?\s(?:in|on|of|from|by)|(?:as|like|than|match(?:es|ing)|resembles"
    r"|(?:similar|identical|correspond(?:s|ing)|compared)\s(?:to|with))"
    r"(?:\s(?:the\s\w{1,20}|that|its|those|one|ones|shown|seen|in|of|from)){0,4}))(?:\s(?:the|this))?"
    r"\s?\Z",
    re.IGNORECASE,
)
# Before words for an image that may be another's than the box's: "the dog from image 1".
_REFERRED = re.compile(r"\b\w+\s(?:of|from)(?:\s(?:the|this))?\s?\Z", re.IGNORECASE)
# Right before or behind a box: words for an image that the other patterns don't know, and a list by
# images, as in "[null, BOX]".
_SHORT_BEFORE = re.compile(
    rf"(?:\b(?:in|on|of|is)\sthe\s{ORDINAL}(?:\sone)?|\b{IMAGE}\sis\s(?:number\s)?\d{{1,2}}"
    r"|\[\s?\]|\bnull|\bNone)\W{0,3}(?:\s(?:the\s)?(?:bounding\s)?box)?\W{0,6}\Z",
    re.IGNORECASE,
)
_SHORT_BEHIND = re.compile(
    rf"\s(?:in|on|of)\sthe\s{ORDINAL}(?:\sone)?\b|[\])\s]{{0,3}},\s?(?:null|None|\[\s?\])",
    re.IGNORECASE,
)
_RIGHT_BEHIND = re.compile(
    r"[\s()\],*`\"'>|]{0,4}(?:which\s)?(?:is\s|as\sseen\s)?(?:(?:in|of|on|from)\s(?:the\s)?|(?<=\())",
    re.IGNORECASE,
)
# Another image than the last in words, between those and the box: "the second shows it at BOX".
_SHORT_BETWEEN = re.compile(
    rf"\bthe\s(?:(?:{ORDINAL}|other|latter)(?:\sone)?|(?:other|target)\s{IMAGE})"
    r"\s?(?:[,:]|(?:it|has|shows|is)\b|\Z)",
    re.IGNORECASE,
)
# "_" of a name, as in "image_2_bbox" and "bbox_image_2".
_AS_PART = re.compile(rf"(?<=\d)_|_(?={IMAGE}_?\d)", re.IGNORECASE)
# In a sentence behind the only box: "it is in image 2", "Located in: image 2".
_IS_IN = re.compile(
    r"\b(?:is|appears|lies|located)\b[^.,;\n]{0,30}?\b(?:in|on):?\s(?:the\s)?\Z", re.IGNORECASE
)
_OR = re.compile(r"\s?(?:,|/|&|or\b|and\b)\s?(?:(?:or|and)\s)?(?:in\s)?(?:the\s)?", re.IGNORECASE)
# There, before the words: "it is not visible in image 1", "not clear whether it is in image 1".
_NOT_SAID = re.compile(
    r"(?:\b(?:no|not(?!\sonly)|never|none|missing|absent|without|whether|if|cannot)\b|n['’]t)"
    r"(?:(?!\bbut\b)[^.,;\n])*\Z",
    re.IGNORECASE,
)
# Right behind a box: "This box refers to image 2", "The coordinates are for the second image".
_OTHERS = WORDING.pattern.replace("?P<", "?P<more_")
_REFERS = re.compile(
    r"[\s.,;:*`\"'|)\]}-]{0,12}\(?\b(?:(?P<box>(?:this|the|these|those|that|its)\s(?:above\s)?"
    r"(?:(?:bounding\s)?box(?:es)?|bbox(?:es)?|box_2d|bbox_2d|coordinates|region|location))"
    r"|this|these|it(?!\sis))\s(?:(?:refers?|belongs?|relates?|applies|apply|points?)\sto"
    r"|(?:is|are)\s(?:given\s|located\s)?(?:in|on|for|from|of|relative\sto|within|with\srespect\sto))"
    rf"\s(?:the\s)?(?P<words>{WORDING.pattern})"
    rf"(?P<more>\s?(?:,|/|&|or\b|and\b)\s?(?:(?:in|to|for|of)\s)?(?:the\s)?(?:{_OTHERS}|\d))?",
    re.IGNORECASE | re.ASCII,
)


class _Named(NamedTuple):
    """Words in a part of a response that name an image: the last, and the last of those that refer.

    Attributes:
      plain: those that neither refer nor compare nor deny.
      others: whether more plain ones name other images: in the same sentence, or anywhere before if
        that is not the box's.
      referred: as in "the dog of image 1"; only looked for if none is plain.
      compared: whether there are some as in "the same dog as in image 1", if none is plain.
    """

    plain: re.Match | None
    referred: re.Match | None
    compared: bool
    others: bool = False


def read(text: str, num_images: int, first: int) -> int | None:
    """Returns the image of the last words of a text that name one; None if there are none.

    Words that refer to it, as in "the dog of image 1", count if there are no others; the image is
    `UNCLEAR` if it is only compared, as in "the same dog as in image 1".

    Args:
      text: the words.
      num_images: number of images of the question.
      first: number, 1 or 0, that the first image has in "image 1".
    """
    return _read(_find(text), num_images, first)


def read_around(before: str, behind: str, num_images: int, first: int) -> int | None:
    """Returns the image of a box by the words before it; if those only refer, by those behind.

    Args:
      before: the text before the box, from the box before it.
      behind: the text behind the box, as far as the next one.
      num_images: number of images of the question.
      first: number that the first image has in "image 1".
    """
    named = _find(before)
    said = _read(named, num_images, first) if named.plain else None
    right = _RIGHT_BEHIND.match(behind)
    words = next(find_wordings(behind), None)
    if words and right and words.start() == right.end() and not _HEADS.match(behind, words.end()):
        image = read_wording(words, num_images, first)
        return image if said in (None, image) else UNCLEAR
    if named.plain:
        return said
    if _SHORT_BEFORE.search(before[-_FAR:]) or _SHORT_BEHIND.match(behind):
        return UNCLEAR
    return _read(named, num_images, first)


def read_sentences(behind: str, num_images: int, first: int) -> int | None:
    """Returns the image that sentences behind the only box say it to be in; None if none does."""
    images, end = set(), 0
    for words in find_wordings(behind):
        before = behind[max(0, words.start() - _FAR) : words.start()]
        is_denied = _COMPARED.search(before) or _NOT_SAID.search(before)
        is_more = end and _OR.fullmatch(behind, end, words.start())
        if is_more or (_IS_IN.search(before) and not is_denied):
            images.add(read_wording(words, num_images, first))
            end = words.end()
    return images.pop() if len(images) == 1 else UNCLEAR if images else None


def refers_to(behind: str) -> re.Match | None:
    """Finds the sentence right behind a box that says which image the box is of."""
    return _REFERS.match(behind)


def read_sentence(said: re.Match, num_images: int, first: int) -> int | None:
    """Returns the image of a match of `refers_to`; `UNCLEAR` if it names several."""
    return UNCLEAR if said["more"] else read_wording(said, num_images, first)


def _find(text: str) -> _Named:
    text = _AS_PART.sub(" ", text)
    plain, referred, compared, others, at_box = None, None, False, False, False
    for words in reversed(list(find_wordings(text))):
        if plain and at_box and _SENTENCE.search(text, words.end(), plain.start()):
            break  # another sentence than that of the last words, which is the box's
        before = text[max(0, words.start() - _FAR) : words.start()]
        if _COMPARED.search(before) or _DENIED.search(before):
            compared = True
        elif _REFERRED.search(before):
            referred = referred or words
        elif plain is None:
            plain, at_box = words, not _SENTENCE.search(text, words.end())
            others = bool(_SHORT_BETWEEN.search(text, words.end()))
        else:
            others = others or words[0].lower() != plain[0].lower()
    return _Named(plain, referred, compared, others)


def _read(named: _Named, num_images: int, first: int) -> int | None:
    if named.others:
        return UNCLEAR
    if words := named.plain or named.referred:
        return read_wording(words, num_images, first)
    return UNCLEAR if named.compared else None
