"""Which of the images that a question names is the one to look in.

Only plain forms are understood; any other question that names an image is unclear, since a wrong
image is worse than none. The words before an image say what it is named for:

1. "locate it in X", "find this object in X", "where it is in X": what is meant is searched there;
2. "locate in X the dog ...", "In X, find ...", "where in X", "which object in X ...", or "find the
   dog in Y in X";
3. "find the dog in X", "where is the dog in X", with nothing beside the dog's name.

The image to look in is the one by 1, wherever it stands. If there is none, the last sentence that
names an image decides: by 2; or by 3, if it names no other, or others only in a clause before ("for
the dog in Y, find a dog in X") or in what describes the dog ("find the dog in X that looks like
the one in Y"). Two images by the same rule are unclear, and so are images that aren't there or
aren't understood ("the other image" of three). Images are shown numbered from 1, so "image 0" is
unclear too.
"""

import enum
import itertools
import re
from typing import NamedTuple

from mirg_jax.grounding.image_words import (
    IMAGE,
    ORDINAL,
    OTHER,
    SEVERAL,
    UNCLEAR,
    VAGUE,
    WORDING,
    is_0,
    is_denied,
    read_number,
    read_wording,
)

_IN = r"(?:in(?:side(?:\s+of)?)?|on|within)"
_THE = r"(?:\s+(?:the|this|that|a))?\s*"
_VERB = (
    r"(?:locate|locali[sz]e|find|ground|detect|identify|recogni[sz]e|mark|box|point(?:\s+(?:out|to))?|"
    r"spot|search(?:\s+for)?|seek|show|give|tell|select|pick|segment|track|outline|highlight|match|"
    r"report|answer|output|return|draw|provide|predict)"
)
_AUXILIARY = r"(?:is|are|was|were|do|does|did|can|could|may|might|will|would|should|must|has|have)"
_PRONOUN = r"(?:it|them|him|her|they|he|she)"
_REFERS_BACK = (
    rf"(?:{_PRONOUN}|(?:this|that|these|those|its|their|the\s+(?:same|corresponding))\b"
    r"(?:(?!\b(?:like|as|than)\s+(?:the|that|those|an?)\b|\bas\s+in\b|\b(?:that|which|who)\s)[^,])"
    r"{0,40}?)"
)
_SENTENCE = re.compile(r"[.;:!?\n。；？！](?!\d)")
_CLAUSE = re.compile(r"[,.;:!?\n。，；？！](?!\d)")
# How an order or a question begins.
_POLITE = (
    r"(?:(?:please|kindly|now|then|and|first|next|finally|also|so|carefully|try\s+to"
    r"|(?:can|could)\s+you(?:\s+please)?)\s+)*"
)
_ORDER = rf"\A\W*{_POLITE}(?:compare\b[^,.]{{0,50}}\band\s+)?{_VERB}(?:\s+and\s+{_VERB})?\b"
_QUESTION = r"\A\W*(?:and\s+)?(?:where|which|what|who)(?:['’]s)?\b"
_BEGINS = re.compile(rf"{_ORDER}|{_QUESTION}", re.IGNORECASE)
# What makes "the dog ... in X" more than the dog's place.
_ASIDE = re.compile(
    r"\b(?:for|like|as|than|match(?:es|ing\s+(?:the|that|those|an?))|corresponds?|resembl\w*|else|different|differs|"
    r"missing|absent|lack(?:s|ing)?|without|not|never|no|none|outside|excluding|except|besides|beside|"
    r"described|marked|shown|seen|depicted|pictured|presented|displayed|given|circled|boxed|"
    r"highlighted|outlined|framed|labell?ed|indicated|drawn|specified|from|after|before|following|"
    r"to|with|by|and|that|which|who|whose|changed|removed|added|disappeared|new|the\s+ones?|those|did|went|could|would|(?:twin|counterpart|part|owner|pair|"
    r"copy|equivalent|partner|rest)\s+of)\b|n['’]t\b",
    re.IGNORECASE,
)
_BACK = re.compile(
    rf"\b(?:{_VERB}\s+{_REFERS_BACK}|where\s+{_PRONOUN}\s+{_AUXILIARY}"
    rf"|where\s+{_AUXILIARY}\s+{_PRONOUN})\s+{_IN}{_THE}\Z",
    re.IGNORECASE,
)
_DIRECT = re.compile(
    rf"(?:{_ORDER}|\A\W*where(?:abouts)?(?:\s+{_AUXILIARY})?),?\s+{_IN}{_THE}\Z", re.IGNORECASE
)
_WHATS_NEW = re.compile(
    rf"\A\W*what(?:['’]s|\s+(?:is|was|has))(?:\s+been)?\s+(?:different|new|changed|added)\s+{_IN}{_THE}\Z",
    re.IGNORECASE,
)
# "Here is image 1. Find the dog in it."
_IN_IT = re.compile(
    rf"(?:{_ORDER}|{_QUESTION})[^,]*\s{_IN}\s+(?:it|(?:that|this)\s+{IMAGE})\W*\Z", re.I
)
_WHICH = re.compile(
    r"\A\W*(?:(?:on|to|at|from|in)\s+)?(?:which|what)(?!\s+(?:the|an?)\b)"
    rf"(?:\s+(?!{_AUXILIARY}\b)\w+){{0,5}}\s+(?:{_IN}|of|from){_THE}\Z",
    re.IGNORECASE,
)
_ALONE = re.compile(r"\W*(?:[.;:!?\n。；？！]|\Z)")
_NAMED_ALONE = re.compile(rf"\A\W*(?:{_IN})?{_THE}\Z", re.IGNORECASE)
_OPENING = re.compile(rf"\A\W*(?:{_POLITE}{_IN}{_THE}|在\s*)\Z", re.IGNORECASE)
_AND_OPENING = re.compile(rf"(?:\b(?:and|then)\s+{_IN}{_THE}|在\s*)\Z", re.IGNORECASE)
_ASKS = re.compile(
    rf"\s*,?\s*{_POLITE}(?:{_VERB}|where|which|what|who)\b"
    r"|(?:中|里|内|上)?，?请?(?:找|定位|标|框|检测|指|识别)(?!.{0,1}的|.{0,1}了)",
    re.IGNORECASE,
)
_PLAIN = re.compile(rf"(?:{_ORDER}|{_QUESTION})(?P<name>.*?)\s{_IN}{_THE}\Z", re.IGNORECASE | re.S)
# A clause before the order, about what is to be found.
_GIVEN = re.compile(
    rf"\A\W*{_POLITE}(?:for|look(?:ing)?(?:\s+\w+)?\s+at|see|consider(?:ing)?|given|observe|us(?:e|ing)|"
    r"based\s+on|according\s+to|refer(?:ring)?\s+to|compare|focus\s+on|notice|regarding|as\s+for|with)\b",
    re.IGNORECASE,
)
_GIVEN_ALONE = re.compile(rf"\W*{_POLITE}(?:for|regarding|as\s+for|with){_THE}", re.IGNORECASE)
# Behind the image of an order: what describes the object, and where that says its place instead.
_DESCRIBES = re.compile(
    r"\s+(?:that|which|who|whose|like|corresponding\s+to|similar\s+to|matching|resembling)\b",
    re.IGNORECASE,
)
_OWN_PLACE = re.compile(
    rf"\s+(?:that|which|who)\s+(?:\w+\s+)?(?:is|was|are|were|be|appears?|occurs?|lies|sits|stands)\b"
    rf"(?!\s+(?:not\b|like\b|similar\b|missing\b|absent\b))[^,]*\b{_IN}{_THE}\Z",
    re.IGNORECASE,
)
# Between two images: "the dog in Y in X", and "where does the dog in Y appear in X".
_IN_NEXT = re.compile(rf"\s+{_IN}{_THE}", re.IGNORECASE)
_IS_IN_NEXT = re.compile(
    rf"\s+(?:(?!(?:the|this|that|an?|and|or|not)\b)\w+\s+){{0,2}}{_IN}{_THE}", re.IGNORECASE
)
_WHERE = re.compile(r"\b(?:where|how)\b", re.IGNORECASE)
# "Not", as in "it isn't seen in image 1"; but "why don't you find it in image 2" asks for it.
_NOT_IN = re.compile(
    r"(?:n['’]t(?!\s+(?:you|we)\b)|\b(?:not|never|ignore|skip|disregard|without|excluding|outside))\b"
    r"(?:(?!\bbut\b)[^,;.])*\Z",
    re.IGNORECASE,
)
# "In the second", "of the other one": an image where others are named in full.
_SHORT = re.compile(
    rf"\b(?:{_IN}|of)\s+the\s+(?P<nth>{ORDINAL}|other)(?:\s+one)?"
    rf"(?=\s*(?:[.,;:?!)]|\Z|\b(?:and|that|which|who|of\s+the(?:m|se)?(?:\s+{IMAGE}s)?)\b))",
    re.IGNORECASE | re.ASCII,
)
_OTHER_ONE = re.compile(rf"other(?:\s+(?:one|{IMAGE}))?", re.IGNORECASE)
# An image that is itself asked for: "which image", "one of the other images", "in these images".
_ASKED_FOR = re.compile(
    rf"\b(?:which|what|(?:one|any|some)\s+of\s+the)\s+(?:of\s+)?(?:\w+\s+){{0,3}}?{IMAGE}s?\b"
    rf"|\b(?:in|among|across)\s+(?:(?:the|these|those|other)\s+){{1,2}}(?:\w+\s+)?{IMAGE}s\b",
    re.IGNORECASE,
)
# Words for an image with letters in the wrong order.
_MISSPELT = re.compile(
    r"\b(?:iamge|imgae|imaeg|imge|iamg|imagge|pciture|picutre|secnod|secodn|seocnd|frist|fisrt|thrid)\b",
    re.IGNORECASE,
)
# "In the coordinates of image 2", which is then the one that is asked for.
_COORDINATES = re.compile(r"\bcoordinat(?:e|es|e\s+system)\b", re.IGNORECASE)
_MOST = 40  # images that a question may name
_FAR = 400  # characters of a clause or a sentence that are looked at


class Asked(NamedTuple):
    """The image, from 1, that a question says to look in, or None.

    `problem` says why it is unclear which, where the question names images; "" otherwise.
    """

    image: int | None
    problem: str = ""


class _Mention(NamedTuple):
    start: int
    end: int
    image: int  # `UNCLEAR` where it depends on others, or isn't understood
    is_other: bool = False
    is_denied: bool = False


class _Role(enum.IntEnum):
    """What an image is named for: the rules of the module, in their order, and all else."""

    BACK = 1
    DIRECT = 2
    PLAIN = 3
    OTHER = 4


def find_asked(text: str, num_images: int) -> Asked:
    """Finds the image to look in, by the rules of the module.

    Args:
      text: the question, without captions of images.
      num_images: number of images.
    """
    mentions = []
    for words in WORDING.finditer(text):
        if is_0(words):
            return Asked(None, f'it names "{words[0]}"; number images from 1')
        image = read_wording(words, num_images)
        image = OTHER if image is None else image
        mentions.append(_Mention(*words.span(), image, is_denied=is_denied(text, words)))
    if all(each.is_denied for each in mentions):
        return Asked(None)
    image = UNCLEAR
    if len(mentions) <= _MOST:
        mentions = _with_vague(text, mentions, num_images)
        image = _choose(text, mentions)
    if image == OTHER:
        return Asked(None, f"it names an image that is none of the {num_images}")
    if image == UNCLEAR:
        quoted = ", ".join(f'"{text[mention.start : mention.end]}"' for mention in mentions[:4])
        return Asked(None, f"it names {quoted}, and not clearly the one to look in")
    return Asked(image)


def _choose(text: str, mentions: list[_Mention]) -> int:
    """Returns the image to look in, or `UNCLEAR`."""
    images = {each.image for each in mentions if not each.is_denied}
    ending = text[_last_end(_SENTENCE, text, len(text.rstrip(" .?!\n"))) :]
    if len(images) == 1 and _IN_IT.search(ending):
        return images.pop()
    last = max(number for number, each in enumerate(mentions) if not each.is_denied)
    last_sentence = _last_end(_SENTENCE, text, mentions[last].start)
    roles = [_role(text, number, mentions) for number in range(len(mentions))]
    named: dict[_Role, set[int]] = {role: set() for role in _Role}
    for mention, role in zip(mentions, roles, strict=True):
        if mention.is_denied or (role != _Role.BACK and mention.start < last_sentence):
            continue
        named[role].add(mention.image)
    for mention in mentions:
        if _COORDINATES.search(text, max(0, mention.start - 30), mention.end + 16):
            named[_Role.BACK].add(mention.image)
    if named[_Role.PLAIN] and not _stands_alone(text, mentions, roles, last_sentence):
        named[_Role.PLAIN] = {UNCLEAR}
    known = (named[role] for role in _Role if role != _Role.OTHER)
    best = next((images for images in known if images), {UNCLEAR})
    return best.pop() if len(best) == 1 else UNCLEAR


def _stands_alone(text: str, mentions: list[_Mention], roles: list[_Role], sentence: int) -> bool:
    """Returns whether a sentence's other images are named in what is given, or describes."""
    inside = [pair for pair in zip(mentions, roles, strict=True) if pair[0].start >= sentence]
    plain = [mention for mention, role in inside if role == _Role.PLAIN]
    others = [each for each, role in inside if role != _Role.PLAIN and not each.is_denied]
    if not others:
        return len({mention.image for mention in plain}) == 1
    if len(plain) != 1 or others[0] < plain[0] < others[-1]:
        return False
    if others[0] < plain[0]:  # "for the dog in Y, find the dog in X"
        clause = _last_end(_CLAUSE, text, plain[0].start)
        given = text[sentence : others[0].start]
        is_given = _GIVEN.match(given) and not _GIVEN_ALONE.fullmatch(given)
        return bool(is_given) and all(each.end <= clause for each in others)
    behind = text[plain[0].end : others[0].start]
    return bool(_DESCRIBES.match(behind)) and not _OWN_PLACE.fullmatch(behind)


def _with_vague(text: str, mentions: list[_Mention], num_images: int) -> list[_Mention]:
    """Adds images that are named in short or vaguely, and reads "the other one" of two images."""
    taken = [(each.start, each.end) for each in mentions]
    patterns = (_SHORT, _ASKED_FOR, _MISSPELT, VAGUE, SEVERAL)
    for found in itertools.chain(*(pattern.finditer(text) for pattern in patterns)):
        start, end = found.span("nth") if found.re is _SHORT else found.span()
        if any(low < end and start < high for low, high in taken):
            continue
        taken.append((start, end))
        is_other = _OTHER_ONE.fullmatch(text, start, end) is not None
        image = UNCLEAR
        if found.re is _SHORT and not is_other:
            image = read_number(found["nth"], num_images)
        mentions.append(_Mention(start, end, image, is_other))
    named = {mention.image for mention in mentions if not mention.is_other}
    if num_images == 2 and len(named) == 1 and min(named) > 0:
        mentions = [m._replace(image=3 - min(named)) if m.is_other else m for m in mentions]
    return sorted(mentions)


def _role(text: str, number: int, mentions: list[_Mention]) -> _Role:
    """Returns what an image is named for, by the words before it."""
    mention = mentions[number]
    sentence = _last_end(_SENTENCE, text, mention.start)
    start = max(mentions[number - 1].end, sentence) if number else sentence
    clause = max(start, _last_end(_CLAUSE, text, mention.start))
    before = text[clause : mention.start]
    is_first = start == sentence  # in its sentence
    following = mentions[number + 1 : number + 2]
    if mention.is_denied or (following and _leads_on(text, sentence, mention, following[0])):
        return _Role.OTHER
    if not is_first and _leads_on(text, sentence, mentions[number - 1], mention):
        asked = text[sentence : mentions[number - 1].start]
        return _Role.DIRECT if _BEGINS.match(asked) else _Role.OTHER
    if _NOT_IN.search(text[sentence : mention.start]):
        return _Role.OTHER
    if _BACK.search(before):
        return _Role.BACK
    if is_first and _ALONE.match(text, mention.end) and _NAMED_ALONE.search(before):
        return _Role.PLAIN  # "In image 2?"
    if is_first and _OPENING.search(text[sentence : mention.start]):
        return _Role.DIRECT if _ASKS.match(text, mention.end) else _Role.OTHER
    if _AND_OPENING.search(before) and _ASKS.match(text, mention.end):
        return _Role.DIRECT
    begins = is_first or clause > start  # what stands before is a whole clause, or a sentence
    if begins and _DIRECT.search(text[start : mention.start] if is_first else before):
        return _Role.DIRECT
    asked = text[sentence : mention.start]
    if is_first and (_WHICH.search(asked) or _WHATS_NEW.search(asked)):
        return _Role.DIRECT
    plain = _PLAIN.search(before)
    if begins and plain and not _ASIDE.search(plain["name"]):
        return _Role.PLAIN
    return _Role.OTHER


def _leads_on(text: str, sentence: int, mention: _Mention, following: _Mention) -> bool:
    """Returns whether an image is followed by another one that what is in it is searched in."""
    between = text, mention.end, following.start
    is_where = _WHERE.search(text, sentence, mention.start)
    return not following.is_denied and bool(
        _IN_NEXT.fullmatch(*between) or (is_where and _IS_IN_NEXT.fullmatch(*between))
    )


def _last_end(pattern: re.Pattern, text: str, end: int) -> int:
    """Returns where the last match of a pattern before a place ends; 0 if there is none."""
    start = max(0, end - _FAR)
    return max((found.end() for found in pattern.finditer(text, start, end)), default=start)
