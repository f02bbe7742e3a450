"""Which image the words of a question, or those beside an answer's box, mean.

A caption beside an image's mark ("Picture 1: <image>", `<image_1>`) names the image that it stands
at, and not the one that is asked for.
"""

import re
from collections.abc import Sequence

from mirg_jax.data.conversation_rows import IMAGE_MARK
from mirg_jax.data.json_rows import quote
from mirg_jax.errors import DataError
from mirg_jax.grounding.grammar import BOX_END, BOX_START, find_image_index
from mirg_jax.grounding.image_words import (
    FROM_END,
    HAN_IMAGE,
    HAN_NUMBER,
    IMAGE,
    NUMBER_SIGN,
    NUMERAL,
    ORDINAL,
    VAGUE,
    WORDING,
    find_image,
)
from mirg_jax.grounding.question_words import Asked, find_asked

_WORDING = f"(?:{WORDING.pattern})"
# Marks, and the numbered marks of other forms: <image_1>, <image 1>, <|image_1|>.
_MARK = re.compile(r"<\|?image[ _-]?(\d{0,3})\|?>", re.IGNORECASE | re.ASCII)
_WORD = re.compile(r"\w")
_FIRST = re.compile(rf"[^\w\n]*(?:the )?{_WORDING}", re.IGNORECASE | re.ASCII)
_BEHIND = re.compile(rf"[\s(\[]*(?:(?:is )?in )?(?:the )?{_WORDING}", re.IGNORECASE | re.ASCII)
# The place of a box behind it, which may be another image than the words before name.
_PLACE = re.compile(
    r"(?:(?P<aside>\s*,|\s*[(\[])\s*|\s+)(?:(?:which|that) )?"
    r"(?:(?:is|lies|appears|seen|found|located|now) ){0,2}"
    r"(?:(?:with)?in(?:side)?|on|of|for|(?<=[(\[]))"
    rf" ?(?:the )?(?P<words>{_WORDING})(?P<end>[\s)\]]*(?:[.;!?。；！？]|\Z|</))?",
    re.IGNORECASE | re.ASCII,
)
# Before a box: "the dog in image 1 is at", which says of another image where the box is not.
_REFERRED = re.compile(
    rf"\w\s(?:in|of|from|on)\s(?:the\s)?{_WORDING}"
    r"\s(?:(?:re)?appears|is|was|can be|lies|sits|stands)"
    r"(?:\s(?:also|again|now|seen|found|located|visible|shown)){0,2}\sat\s?\Z",
    re.IGNORECASE | re.ASCII,
)
_HEADS = re.compile(r"[\s*)\]]*[:：]")
_CLAUSE_END = re.compile(r"[,.;!?\n]|\b(?:and|but|while|whereas)\b", re.IGNORECASE)
_FAR = 200  # characters before a box that are looked at
_NUMERAL = rf"(?:\d+|{NUMERAL})\b"
_ORDINAL = rf"(?:{ORDINAL}|\d+(?:st|nd|rd|th)|other|next)"
# What may refer to an image, whether it is understood or not.
_REFERENCE = re.compile(
    rf"\b(?:{IMAGE}|images|page|panel)\W{{0,5}}(?:{NUMBER_SIGN}\W{{1,4}})?{_NUMERAL}"
    rf"|\b{_ORDINAL}(?: (?:input|given|provided|and {_ORDINAL}))? {IMAGE}s?\b{FROM_END}?"
    rf"|{VAGUE.pattern}|{HAN_IMAGE}[^\w\s]?\s?{HAN_NUMBER}|第{HAN_NUMBER}[张幅个]",
    re.IGNORECASE | re.ASCII,
)
_LIST = re.compile(rf"[\s,]*(?:and|or|,|&)\s*{_NUMERAL}", re.IGNORECASE | re.ASCII)
_PUNCTUATION = " \t:;,.-*()[]"
_ENDS = ".?!\n。？！"  # of sentences


def find_asked_image(question: str, num_images: int) -> Asked:
    """Finds the image that a question says to look in, by `grounding.question_words`.

    It is named behind the images' marks, or before all of them where only the images follow. What
    stands between marks, or directly at one, are captions.
    """
    first, *others = _MARK.split(question)[::2]
    if not others:
        return find_asked(question, num_images)
    *between, last = others
    if _WORD.search(last):
        behind = _captions_behind([first, *others])
        return find_asked(last[behind[-1].end() if behind else 0 :], num_images)
    if any(map(_WORD.search, between)):
        return Asked(None)
    return find_asked(_without_caption(first), num_images)


def check_captions(question: str, first: int, num_images: int) -> None:
    """Checks that no caption gives an image the number that another one has here.

    Args:
      question: the question.
      first: number, from 1, of the first image that has a mark in it.
      num_images: number of images.

    Raises:
      DataError: if one does.
    """
    texts = question.split(IMAGE_MARK)
    captions = [match[0].strip(_PUNCTUATION) for match in _captions_behind(texts)]
    for number, caption in enumerate(captions or map(_caption, texts[:-1]), start=first):
        if caption and (find_image(caption, num_images) or number) != number:
            raise DataError(
                f"image {number} of the conversation is called {quote(caption)}; number images "
                "from 1 in their order, or leave the captions out"
            )
    if any(digits and int(digits) == 0 for digits in _MARK.findall(question)):
        raise DataError("the question's marks number images from 0; number them from 1")


def find_behind(answer: str, num_images: int) -> list[int | None]:
    """Returns for each box the image named right behind it, as "BOX in the second image".

    It is None where none is named, and 0 where one is named that isn't there.
    """
    found = (_BEHIND.match(text) for text in answer.split(BOX_END)[1:])
    return [(find_image(match[0], num_images) or 0) if match else None for match in found]


def check_places(answer: str, named: Sequence[int | None], num_images: int) -> list[int | None]:
    """Returns the images of boxes, corrected by the places behind them.

    In "the dog in image 1 is at BOX in image 2" the box is in image 2.

    Args:
      answer: the answer, with its boxes.
      named: the image that the words before name for each box, None for none.
      num_images: number of images of the question.

    Raises:
      DataError: if a box has other images before and behind it, and it isn't plain which is its.
    """
    pieces, images = answer.split(BOX_END), []
    for number, (image, behind) in enumerate(zip(named, pieces[1:], strict=True)):
        images.append(image)
        place = _PLACE.match(behind)
        if image is None or place is None:
            continue
        said = find_image(place["words"], num_images)
        rest, is_last = place.end("words"), number == len(named) - 1
        heads_next = not is_last and not _CLAUSE_END.search(behind.partition(BOX_START)[0], rest)
        ends = place["end"] is not None
        is_place = ends or place["aside"] != ","
        if said == image or _HEADS.match(behind, rest) or heads_next or not is_place:
            continue
        before = pieces[number].rpartition(BOX_START)[0][-_FAR:]
        if not (said and ends and place["aside"] is None and _REFERRED.search(before)):
            raise DataError(
                f"image {image} is named before a box and {quote(place['words'])} behind it; name "
                "only the box's own image, before it"
            )
        images[-1] = said
    return images


def check_answer(answer: str, num_images: int) -> bool:
    """Checks that what an answer says of images is understood, and is one image for each box.

    Args:
      answer: the answer, with its boxes.
      num_images: number of images of the question.

    Returns:
      Whether it says anything of images.

    Raises:
      DataError: if it isn't.
    """
    any_named = False
    for text in answer.split(BOX_END):
        named = set()
        for found in _REFERENCE.finditer(text):
            image = find_image_index(found[0], num_images)  # as training and rewards read it
            understood = image is not None and image == find_image(found[0], num_images)
            if not understood or _LIST.match(text, found.end()):
                raise DataError(
                    f"{quote(found[0])} in the answer is not understood as one of {num_images} "
                    'images; name each box\'s image before it, as "In the second image: "'
                )
            named.add(image)
            any_named = True
        if len(named) > 1:
            raise DataError(
                f"the answer names images {sorted(named)} for one box; name only the box's own"
            )
    return any_named


def _caption(text: str) -> str:
    """Returns the caption that ends a text before a mark: "Image-2" of "Image-2: "; or ""."""
    line = text.rstrip().rpartition("\n")[2]
    found = list(WORDING.finditer(line))
    if not found or _WORD.search(line, found[-1].end()):
        return ""
    caption = found[-1]
    before, after = line[: caption.start()], line[caption.end() :]
    is_alone = not _WORD.search(before.lower().removesuffix("the "))
    is_at_mark = "\n" not in text[len(text.rstrip()) :] and not set(after) & set(".,;?!")
    return caption[0] if is_alone or is_at_mark else ""


def _captions_behind(texts: list[str]) -> list[re.Match]:
    """Returns the captions of a question that has them behind its marks, as "<image> (image 1)".

    Args:
      texts: the texts before, between and behind the marks.

    Returns:
      The beginnings of all but the first text; empty unless each is a caption.
    """
    found = [match for text in texts[1:] if (match := _FIRST.match(text))]
    return found if 1 < len(found) == len(texts) - 1 and not _caption(texts[0]) else []


def _without_caption(text: str) -> str:
    """Drops what stands before a mark on its line, or the whole line before if it is a caption."""
    text = text[: max(map(text.rfind, _ENDS)) + 1].rstrip()
    before, _, line = text.rpartition("\n")
    is_caption = _FIRST.match(line) and max(map(line.rstrip(_ENDS).rfind, _ENDS)) < 0
    return before if is_caption else text
