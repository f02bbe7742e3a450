"""Reading chat completions in the dialects of different servers."""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from mirg_jax.errors import hide_base64
from mirg_jax.grounding.grammar import (
    ANSWER_END,
    ANSWER_START,
    END_OF_TEXT,
    END_OF_TURN,
    THINK_END,
    THINK_START,
    without_ending,
)

NO_CHOICE = "no choice in the answer"
CUT = "the answer was cut at max_tokens"
FILTERED = "the answer was filtered"
REFUSED = "the model refused"
_MOST_WORDS = 300  # characters that are quoted of a server's words
_SHORTEST_KEY = 8  # characters; anything shorter may be part of an answer by chance
# Ends in the text's end at the latest: a search that fails would begin again at every tag.
_NOT_SHOWN = re.compile(
    r"<(script|style)\b.*?(?:</\1\s*>|\Z)|<[^<>]{1,200}>", re.DOTALL | re.IGNORECASE
)
# The fields of a message, or the types of its parts, that hold a model's thoughts.
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_PART_TEXTS = ("text", "output_text")
# The fields of an object of thoughts that hold its words.
_WORDS = ("text", "content", "thinking", "reasoning", "summary")
# End tokens of the usual models, which servers leave in an answer if special tokens are kept.
_END_TOKENS = (
    *(END_OF_TURN, END_OF_TEXT, "<|eot_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>"),
    *("<|return|>", "</s>", "<eos>", "<pad>", "<｜end▁of▁sentence｜>"),
)
# What the reason that an answer ended for says of it, under the names of several servers.
_PROBLEMS = {
    **dict.fromkeys(("length", "max_tokens", "max_output_tokens", "model_length"), CUT),
    **dict.fromkeys(("content_filter", "sensitive", "safety", "recitation", "blocklist"), FILTERED),
    **dict.fromkeys(("prohibited_content", "spii"), FILTERED),
    "refusal": REFUSED,
}
# The server itself ended the answer, so it would be another if it were asked for again.
_FAILURES = {"abort", "aborted", "error", "cancelled", "canceled", "failed", "timeout"}
_FAILURES |= {"network_error", "insufficient_system_resource"}


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
      problem: why the text is incomplete or missing; "" if it is complete.
    """

    text: str
    problem: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ServerError(ValueError):
    """An error that a server reports inside a successful response.

    Attributes:
      status: the HTTP status that it amounts to, if the server says.
    """

    def __init__(self, words: str, status: int | None):
        super().__init__(words)
        self.status = status


def is_empty(text: str) -> bool:
    """Returns whether a text has nothing but white space and end tokens."""
    return not without_ending(text, _END_TOKENS)


def quote_words(text: str, hide: str = "") -> str:
    """Shortens a server's words for a line: no markup, no base64, a few hundred characters.

    Args:
      text: the words.
      hide: a text, such as the key, that is removed.
    """
    text = text[:20_000].replace(hide, "[key]") if hide else text[:20_000]
    text = _NOT_SHOWN.sub(" ", text)
    return " ".join(hide_base64(text).split())[:_MOST_WORDS]


def read_completion(answer: Any, hide: str = "") -> Reply:
    """Reads the first choice of a chat completion.

    Thoughts that the server separated from the answer are put before it again. If the server took
    the whole response for thoughts, an answer block in them counts as the answer.

    Args:
      answer: the response's JSON, or its text if it was not declared as JSON.
      hide: the key, which is removed from a server's words, and from an answer if it is too long to
        be there by chance.

    Raises:
      ServerError: if the response is an error message, or the server broke the answer off.
      ValueError: if it has another form; the message quotes it.
    """
    if isinstance(answer, str):
        try:
            answer = json.loads(answer)
        except (ValueError, RecursionError):
            raise ValueError(f"not a chat completion: {quote_words(answer, hide)}") from None
    if error := _find_error(answer):
        words = quote_words(_words_of(error), hide)
        raise ServerError(f"an error in the answer: {words}", _status_of(error))
    try:
        tokens = _read_usage(answer.get("usage"))
        if not isinstance(answer["choices"], list):
            raise TypeError
        if not answer["choices"]:
            return Reply("", NO_CHOICE, *tokens)
        choice = answer["choices"][0]
        message = choice.get("message")
        if message is None and isinstance(choice["text"], str):
            message = {"content": choice["text"]}
        text, parts_thoughts = _read_content(message.get("content"))
        thoughts = _find_thoughts(message) or parts_thoughts
        refusal, finish = message.get("refusal"), _read_finish(choice.get("finish_reason"))
    except (AttributeError, TypeError, KeyError, ValueError, OverflowError):
        words = quote_words(_dump(answer), hide)
        raise ValueError(f"an answer of another form than a chat completion: {words}") from None
    if finish in _FAILURES:
        raise ServerError(f"the server broke the answer off (finish_reason {finish!r})", None)
    problem = REFUSED if refusal else _PROBLEMS.get(finish, "")
    text, problem = _put_together(text, thoughts, str(refusal or ""), problem)
    if len(hide) >= _SHORTEST_KEY:
        text = text.replace(hide, "[key]")
    return Reply(text, problem, *tokens)


def _read_usage(usage: Any) -> list[int]:
    """Returns the numbers of prompt and completion tokens, 0 where they are not told."""
    found = []
    for kind in ("prompt", "completion"):
        count = usage.get(f"{kind}_tokens") if isinstance(usage, dict) else None
        found.append(count if isinstance(count, int) and count > 0 else 0)
    return found


def _read_finish(reason: Any) -> str:
    """Returns the reason that an answer ended for, in small letters."""
    if isinstance(reason, dict):
        reason = reason.get("type")
    return str(reason).lower()


def _put_together(text: str, thoughts: str, refusal: str, problem: str) -> tuple[str, str]:
    """Returns a reply's whole text and its problem."""
    if refusal:
        return text or refusal, problem
    if not is_empty(text):
        if thoughts and text.lstrip().startswith(ANSWER_START):
            inside = thoughts.strip().removeprefix(THINK_START).removesuffix(THINK_END)
            text = f"{THINK_START}{inside}{THINK_END}{text}"
        return text, problem
    if ANSWER_START in thoughts and without_ending(thoughts, _END_TOKENS).endswith(ANSWER_END):
        begins = THINK_START in thoughts or THINK_END not in thoughts
        return thoughts if begins else f"{THINK_START}{thoughts}", problem
    if thoughts and problem == CUT:
        return f"{THINK_START}{thoughts}", problem
    if thoughts and not problem:
        return "", (
            "an empty answer: the server took all of it for reasoning "
            f"({quote_words(thoughts)[:80]!r}); start it without a reasoning parser"
        )
    return "", problem or "an empty answer"


def _read_content(content: Any) -> tuple[str, str]:
    """Returns the text and the thoughts of a message's content: a text, a part, or a list of those.

    Raises:
      TypeError: if it has another form.
    """
    if content is None or isinstance(content, str):
        return content or "", ""
    content = [content] if isinstance(content, dict) else content
    if not isinstance(content, list):
        raise TypeError
    texts, thoughts = [], []
    for part in content:
        kind = "text" if isinstance(part, str) else part.get("type", "text")
        if isinstance(part, str):
            texts.append(part)
        elif kind in _PART_TEXTS and isinstance(part["text"], str):
            texts.append(part["text"])
        elif kind in _THOUGHTS:
            thoughts.append(_find_words(part.get(kind, part.get("text"))))
        else:
            raise TypeError
    return "".join(texts), "".join(thoughts)


def _find_thoughts(message: Mapping[str, Any]) -> str:
    """Returns the thoughts in a message's own fields."""
    said = (_find_words(message.get(name)) for name in (*_THOUGHTS, "reasoning_details"))
    return next(filter(None, said), "")


def _find_words(value: Any, depth: int = 5) -> str:
    """Returns the words of thoughts: a text, an object that has them in a field, or a list."""
    if isinstance(value, list) and depth:
        return "".join(_find_words(each, depth - 1) for each in value)
    if isinstance(value, dict) and depth:
        said = (_find_words(value.get(name), depth - 1) for name in _WORDS)
        return next(filter(None, said), "")
    return value if isinstance(value, str) else ""


def _find_error(answer: Any) -> Any:
    """Returns the error that a response holds in place of a choice; None if it holds none."""
    if not isinstance(answer, dict):
        return None
    choices = answer.get("choices")
    if isinstance(choices, list) and choices:
        first = choices[0]
        return first.get("error") if isinstance(first, dict) else None
    if choices is None:
        if answer.get("object") == "error":
            return answer
        named = (answer.get(name) for name in ("error", "detail", "message"))
        return next(filter(None, named), None)
    return answer.get("error")


def _words_of(error: Any) -> str:
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return error["message"]
    return error if isinstance(error, str) else _dump(error)


def _status_of(error: Any) -> int | None:
    """Returns the HTTP status in an error's code, if it is one."""
    for name in ("code", "status", "status_code"):
        code = error.get(name) if isinstance(error, dict) else None
        if str(code).isdecimal() and 400 <= int(str(code)[:4]) < 600:
            return int(code)
    return None


def _dump(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return repr(type(value))
