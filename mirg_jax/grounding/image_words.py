"""Words that name an image: those of our own grammar, and more that other models and data use.

Besides "the second image", "Image-2" and "the last image" these are "image (2)", "image number 2",
"img. 2", "Fig. 2", "view 2", "image two", "Image B", "Image II", "the 2nd input image", 图2,
第二张图, and images counted from the end, as "the second-to-last image", which the grammar takes
for the last. Words that deny an image, as in "not in image 2", name none. What a reward reads
stays `grammar.find_image_index`.
"""

import re
from collections.abc import Iterator

from mirg_jax.grounding import grammar

OTHER = 0  # an image that is named, but isn't there
UNCLEAR = -1  # an image that is named in words that aren't understood

IMAGE = r"(?:image|img|picture|pic|photo|frame|view)"
HAN_IMAGE = r"(?:图片|图像|照片|画面|图)"
NUMBER_SIGN = r"(?:number|num|no\.?|nr\.?|index|id)"  # as in "image number 2"
_NUMERALS = "one two three four five six seven eight nine ten eleven twelve".split()
NUMERAL = f"(?:{'|'.join(_NUMERALS)})"
_LETTERS = "ABCDEFGH"
_ROMAN = "II III IV VI VII VIII".split()
# "I" is a word too, unless a sign or the end follows.
LABEL = rf"(?-i:[{_LETTERS}]|{'|'.join(_ROMAN)}|I(?=\s?(?:[:,.)\]*\"'`]|\Z)))"
_HAN_NUMERALS = "一二三四五六七八九十"
HAN_NUMBER = rf"(?:[0-9０-９]{{1,3}}|[{_HAN_NUMERALS}])"
_NTH = rf"(?:{'|'.join(grammar.ORDINALS)}|\d{{1,3}}(?:st|nd|rd|th))"
_GAP = r"[\s_-]{1,2}"
# second-to-last, next to last, third from the end, 2nd last, last but one. Not the range in "from
# the second to the last image".
_FROM_END = (
    rf"(?<!\bfrom )(?<!\bfrom the )(?:{_NTH}|next){_GAP}(?:to|from){_GAP}(?:the{_GAP})?"
    rf"(?:last|final|end)|{_NTH}{_GAP}last|(?:last|final){_GAP}but{_GAP}{NUMERAL}|(?:ante)?penultimate"
)
ORDINAL = rf"(?:{_FROM_END}|{_NTH}|last|final)"
# Behind an ordinal's image: "the second image from the end", "the last image but one".
FROM_END = rf"(?: from (?:the )?(?:end|last)\b| but {NUMERAL}\b)"
# A numeral or a letter behind "the image" may be that of the objects in it.
_NOT_OF_OBJECTS = r"(?<!\bthe\s)(?<!\bthis\s)(?<!\bthat\s)\b"
_ALONE = r"\b(?=\s{0,3}(?:[^\w\s]|(?:at|is|shows|contains|has)\b|\Z))"
# "The second picture on the wall" and "the first photo frame" are objects.
_NO_OBJECT = r"(?!\s(?:frame|on\s(?:the|a)\s(?:\w{1,20}\s)?wall))"
WORDING = re.compile(
    r"\b(?:fig(?:ure)?|panel|img|pic)\.?\s?(?P<figure>\d{1,3})\b"
    rf"|\b{IMAGE}(?:(?:[\s#_-]{{0,2}}|\s#\s)(?P<number>\d{{1,3}})\b"
    r"|\s?[(\[]\s?(?P<bracketed>\d{1,3})\s?[)\]]"
    rf"|\s{{1,2}}{NUMBER_SIGN}\s?#?(?P<numbered>\d{{1,3}})(?![\d.]*\d)\b)"
    rf"|{_NOT_OF_OBJECTS}{IMAGE}(?:[\s_-]|\s?[(\[])(?P<numeral>{NUMERAL}{_ALONE}|{LABEL}\b)"
    rf"|\b{IMAGE}(?:[\s_-]|\s?[(\[])(?P<label>{LABEL}){_ALONE}"
    rf"|\b(?P<ordinal>{ORDINAL}|source)\s{{1,2}}(?:(?:input|given|provided)\s{{1,2}})?{IMAGE}\b{_NO_OBJECT}"
    rf"(?P<from_end>{FROM_END})?"
    rf"|{HAN_IMAGE}\s?[#_-]?[（(]?(?P<han>{HAN_NUMBER})(?![\d０-９{_HAN_NUMERALS}张幅个只条])"
    rf"|第(?P<han_ordinal>{HAN_NUMBER})[张幅个]?{HAN_IMAGE}|(?P<han_last>最后)一?[张幅个]?{HAN_IMAGE}",
    re.IGNORECASE | re.ASCII,
)
# Words for an image that don't say by themselves which.
VAGUE = re.compile(
    r"\b(?:left|right|top|bottom|upper|lower|middle|cent(?:er|re|ral)|other|another|next|previous|"
    r"preceding|remaining|former|latter|opposite|query|reference)(?:[\s-](?:hand|most))?"
    rf"\s{{1,2}}{IMAGE}s?\b"
    rf"|{_NOT_OF_OBJECTS}{IMAGE}[\s_-](?-i:[A-Z]|[IVX]{{1,5}}){_ALONE}"
    rf"|[左右上下][边侧]?的?{HAN_IMAGE}|另一?[张幅个]{HAN_IMAGE}",
    re.IGNORECASE | re.ASCII,
)
# Words for several images.
SEVERAL = re.compile(
    rf"\b(?:both|all|each|every)(?:\s{{1,2}}(?:of|the|these|those|other)){{0,2}}\s{{1,2}}{IMAGE}s?\b"
    rf"|\b{IMAGE}s\s?[(\[]?\d{{1,3}}\b|\b{ORDINAL}\s{{1,2}}{IMAGE}s\b",
    re.IGNORECASE | re.ASCII,
)
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:no|not|nor|neither|never|without|except|unlike)|n['’]t|\brather than|\binstead of)"
    r"(?:\s{1,2}(?:in|on|from|of|for|as))?(?:\s{1,2}the)?\s{0,2}\Z|(?:不在|没有|不是)\s?\Z",
    re.IGNORECASE,
)
_DENIED_BEHIND = re.compile(
    r"[\s)\]]{0,3}(?:is|was|does|has|can|will)?\s?(?:n['’]t|not|never|unused|no)\b|[)）]?(?:没有|不)",
    re.IGNORECASE,
)
_NUMBERS = {word: number for number, word in enumerate(_NUMERALS, 1)}
_NUMBERS |= {word: number for number, word in enumerate(grammar.ORDINALS, 1)} | {"source": 1}
_NUMBERS |= {letter.lower(): number for number, letter in enumerate(_LETTERS, 1)} | {"i": 1}
_NUMBERS |= dict(zip(map(str.lower, _ROMAN), (2, 3, 4, 6, 7, 8), strict=True))
_NUMBERS |= {numeral: number for number, numeral in enumerate(_HAN_NUMERALS, 1)}
_BACKWARDS = {"last": 1, "final": 1, "next": 2, "penultimate": 2, "antepenultimate": 3, "最后": 1}


def find_wordings(text: str) -> Iterator[re.Match]:
    """Yields the matches of `WORDING` in a text, but for those that are denied."""
    for words in WORDING.finditer(text):
        if not is_denied(text, words) and not _DENIED_BEHIND.match(text, words.end()):
            yield words


def is_denied(text: str, words: re.Match) -> bool:
    """Returns whether a match of `WORDING` is denied by what stands before, as "not in image 2"."""
    return bool(_DENIED_BEFORE.search(text[max(0, words.start() - 30) : words.start()]))


def find_image(text: str, num_images: int, first: int = 1) -> int | None:
    """Returns the image that the last words for one in a text name.

    Args:
      text: the words.
      num_images: number of images.
      first: number, 1 or 0, that the first image has in "image 1".

    Returns:
      The image, from 1, or `OTHER` if it isn't there; None if no words name any.
    """
    words = None
    for words in find_wordings(text):  # noqa: B007
        pass
    return None if words is None else read_wording(words, num_images, first)


def read_wording(words: re.Match, num_images: int, first: int = 1) -> int | None:
    """Returns the image that a match of `WORDING` names, as `find_image` does."""
    if ordinal := words["ordinal"] or words["han_ordinal"] or words["han_last"]:
        return read_number(ordinal + (words["from_end"] or ""), num_images)
    if first and is_0(words):
        return None
    return read_number(_counted(words), num_images, first)


def is_0(words: re.Match) -> bool:
    """Returns whether a match of `WORDING` names an image 0, so that images count from there."""
    number = _counted(words)
    return bool(number) and number.isdecimal() and int(number) == 0


def _counted(words: re.Match) -> str:
    groups = ("figure", "number", "bracketed", "numbered", "numeral", "label", "han")
    return next((words[name] for name in groups if words[name]), "")


def read_number(words: str, num_images: int, first: int = 1) -> int:
    """Returns the image that "2", "two", "B", "2nd", "last" or "second-to-last" means, or `OTHER`.

    Args:
      words: digits, a match of `NUMERAL`, `LABEL` or `HAN_NUMBER`, or one of `ORDINAL` with or
        without `FROM_END`.
      num_images: number of images.
      first: number, 1 or 0, that the first image has among digits and numerals.
    """
    number, *others = re.split(r"[\s_-]+", words.lower())
    if number in _BACKWARDS or others:
        back = _BACKWARDS.get(number) or _read_one(number)
        image = num_images + 1 - back - (_NUMBERS[others[-1]] if "but" in others else 0)
    else:
        counted = number.isdecimal() or number in _NUMERALS
        image = _read_one(number) + (1 - first if counted else 0)
    return image if 1 <= image <= num_images else OTHER


def _read_one(word: str) -> int:
    return _NUMBERS.get(word) or int(re.sub(r"\D", "", word))
