"""Reading chat completions in the dialects of different servers."""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from mirg_jax.errors import hide_base64, without_middle
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
_MOST_NAME = 200  # characters of a model's name
_SHORTEST_KEY = 8  # characters; anything shorter may be part of an answer by chance
# Ends in the text's end at the latest: a search that fails would begin again at every tag.
_NOT_SHOWN = re.compile(
    r"<(script|style)\b.*?(?:</\1\s*>|\Z)|<[^<>]{1,200}>", re.DOTALL | re.IGNORECASE
)
# The fields of a message, or the types of its parts, that hold a model's thoughts.
_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "reasoning_text", "thought", "thoughts")
# Special tokens around thoughts of Kimi-VL, Magistral and Seed-OSS.
_OTHER_MARKS = {
    **{"◁think▷": THINK_START, "◁/think▷": THINK_END},
    **{"[THINK]": THINK_START, "[/THINK]": THINK_END},
    **{"<seed:think>": THINK_START, "</seed:think>": THINK_END},
}
_PART_TEXTS = ("text", "output_text")
# Types of parts whose thoughts a server keeps to itself.
_UNREADABLE_THOUGHTS = ("redacted_thinking", "redacted_reasoning", "reasoning.encrypted")
# The fields of an object of thoughts that hold its words.
_WORDS = ("text", "content", "thinking", "reasoning", "summary")
_FINISH_PREFIX = re.compile(r"(finish|stop)_?reason_")
# End tokens of the usual models, which servers leave in an answer if special tokens are kept.
_END_TOKENS = (
    *(END_OF_TURN, END_OF_TEXT, "<|eot_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>"),
    *("<|return|>", "</s>", "<eos>", "<pad>", "<｜end▁of▁sentence｜>"),
)
_TOOLS = ("tool_calls", "tool_call", "tool_use", "function_call")
# What the reason that an answer ended for says of it, under the names of several servers.
_COMPLETE = ("", "none", "null", "stop", "end", "end_turn", "end_of_turn", "eos", "eos_token")
_COMPLETE += ("end_of_text", "endoftext", "stop_sequence", "stop_token", "stop_string", "stop_word")
_COMPLETE += ("complete", "completed", "done", "finish", "finished", "normal", "success", *_TOOLS)
_CUT = ("length", "max_tokens", "max_output_tokens", "model_length", "max_new_tokens", "max_length")
_CUT += ("token_limit", "length_limit", "model_context_window_exceeded", "context_length_exceeded")
_CUT += ("max_completion_tokens", "max_output", "limit", "error_limit")
_FILTERED = ("content_filter", "content_filtered", "sensitive", "safety", "image_safety", "spii")
_FILTERED += ("recitation", "blocklist", "prohibited_content", "guardrail_intervened", "moderation")
_FILTERED += ("content_policy", "content_policy_violation", "model_armor", "error_toxic")
_PROBLEMS = {
    **dict.fromkeys(_COMPLETE, ""),
    **dict.fromkeys(_CUT, CUT),
    **dict.fromkeys(_FILTERED, FILTERED),
    **dict.fromkeys(("refusal", "refused"), REFUSED),
}
# The server itself ended the answer, so it would be another if it were asked for again.
_FAILURES = {"abort", "aborted", "error", "cancelled", "canceled", "failed", "timeout"}
_FAILURES |= {"network_error", "insufficient_system_resource", "time_limit", "user_cancel"}
_FAILURES |= {"internal_error", "server_error", "timed_out"}
# Fields of an object around a completion: those that hold it, those that say how the request went
# and what they say where it went well, and those of an error.
_ENVELOPES = ("data", "result", "response", "output", "body")
_STATES = ("code", "status", "status_code", "success", "ok")
_ERRORS = ("error", "errors", "detail", "message", "msg")
_FINE = {"", "0", "200", "ok", "success", "succeeded", "complete", "completed", "true"}


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
      problem: why the text is incomplete or missing; "" if it is complete.
      model: the model that answered, as the server names it; "" if it doesn't.
      server: the server's address, without secrets; "" if the answer is of none.
    """

    text: str
    problem: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str = ""
    server: str = ""


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
    text = text.replace(hide, "[key]") if hide else text
    text = _NOT_SHOWN.sub(" ", without_middle(text, 20_000))
    return " ".join(hide_base64(text).split())[:_MOST_WORDS]


def read_completion(answer: Any, hide: str = "") -> Reply:
    """Reads the first choice of a chat completion.

    Thoughts that the server separated from the answer are put before it again, and their opening
    tag, if the chat template has it in the prompt. If the server took the whole response for
    thoughts, an answer block in them counts as the answer.

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
            answer = json.loads(answer.removeprefix("\ufeff"))
        except (ValueError, RecursionError):
            raise ValueError(f"not a chat completion: {quote_words(answer, hide)}") from None
    answer = _with_choices(_unwrap(answer))
    if error := _find_error(answer):
        words = quote_words(_words_of(error), hide)
        raise ServerError(f"an error in the answer: {words}", _status_of([error, answer]))
    try:
        tokens = _read_usage(answer.get("usage"))
        model = _read_model(answer.get("model"), hide)
        if not isinstance(answer["choices"], list):
            raise TypeError
        if not answer["choices"]:
            return Reply("", NO_CHOICE, *tokens, model)
        choice = answer["choices"][0]
        message = choice.get("message")
        if message is None and isinstance(choice["text"], str):
            message = {"content": choice["text"]}
        text, parts_thoughts, parts_refusal = _read_content(message.get("content"))
        for mark, tag in _OTHER_MARKS.items():
            text = text.replace(mark, tag)
        thoughts = _find_thoughts(message) or parts_thoughts
        refusal = message.get("refusal") or parts_refusal
        reason = choice.get("finish_reason", choice.get("finishReason"))
    except (AttributeError, TypeError, KeyError, ValueError, OverflowError):
        words = quote_words(_dump(answer), hide)
        raise ValueError(f"an answer of another form than a chat completion: {words}") from None
    finish = _read_finish(reason)
    if finish in _FAILURES:
        raise ServerError(f"the server broke the answer off (finish_reason {finish!r})", None)
    if (problem := REFUSED if refusal else _PROBLEMS.get(finish)) is None:
        words = quote_words(reason if isinstance(reason, str) else _dump(reason), hide)
        problem = f"the answer ended for an unknown reason (finish_reason {words[:80]!r})"
    tool = quote_words(_find_tool(message, finish), hide)[:80]
    text, problem = _put_together(text, thoughts, str(refusal or ""), problem, tool)
    if len(hide) >= _SHORTEST_KEY:
        text = text.replace(hide, "[key]")
    return Reply(text, problem, *tokens, model)


def _read_model(name: Any, hide: str) -> str:
    return quote_words(name, hide)[:_MOST_NAME] if isinstance(name, str) else ""


def _read_usage(usage: Any) -> list[int]:
    """Returns the numbers of prompt and completion tokens, 0 where they are not told."""
    found = []
    for kind in ("prompt", "completion"):
        count = usage.get(f"{kind}_tokens") if isinstance(usage, dict) else None
        found.append(count if isinstance(count, int) and count > 0 else 0)
    return found


def _read_finish(reason: Any) -> str:
    """Returns the reason that an answer ended for, as max_tokens for "FinishReason.MaxTokens"."""
    if isinstance(reason, dict):
        reason = reason.get("type")
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(reason).strip().rpartition(".")[2])
    return _FINISH_PREFIX.sub("", re.sub(r"[\s-]+", "_", words.lower()), count=1)


def _find_tool(message: Mapping[str, Any], finish: str) -> str:
    """Returns the call of a tool in a message; "" if there is none."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    calls = [part for part in parts if isinstance(part, dict) and part.get("type") in _TOOLS]
    calls = message.get("tool_calls") or message.get("function_call") or calls
    if calls:
        return _dump(calls)
    return finish if finish in _TOOLS else ""


def _put_together(
    text: str, thoughts: str, refusal: str, problem: str, tool: str
) -> tuple[str, str]:
    """Returns a reply's whole text and its problem."""
    if refusal:
        return text or refusal, problem
    if not is_empty(text):
        if thoughts and text.lstrip().startswith(ANSWER_START):
            inside = thoughts.strip().removeprefix(THINK_START).removesuffix(THINK_END)
            return f"{THINK_START}{inside}{THINK_END}{text}", problem
        return _open_thoughts(text, thoughts), problem
    if ANSWER_START in thoughts and without_ending(thoughts, _END_TOKENS).endswith(ANSWER_END):
        begins = THINK_START in thoughts or THINK_END not in thoughts
        return thoughts if begins else f"{THINK_START}{thoughts}", problem
    if thoughts and problem == CUT:
        return f"{THINK_START}{thoughts}", problem
    if tool and not problem:
        return "", (
            f"an empty answer: the model called a tool ({tool}); leave tools out of extra_body, or "
            "start the server without a tool parser"
        )
    if thoughts and not problem:
        return "", (
            "an empty answer: the server took all of it for reasoning "
            f"({quote_words(thoughts)[:80]!r}); start it without a reasoning parser"
        )
    return "", problem or "an empty answer"


def _open_thoughts(text: str, thoughts: str) -> str:
    """Puts the opening tag before thoughts that only end in a tag, as the prompt has the former.

    Args:
      text: the response.
      thoughts: what the server separated from it.
    """
    before, end, after = text.partition(THINK_END)
    if not end or THINK_START in before or ANSWER_START in before:
        return text
    if not before.strip() and THINK_END not in thoughts:
        before = thoughts.strip().removeprefix(THINK_START)
    return f"{THINK_START}{before}{end}{after}"


def _read_content(content: Any) -> tuple[str, str, str]:
    """Returns the text, the thoughts and the refusal of a message's content.

    That is a text, a part, or a list of those. A part of an unknown type is passed over if it has
    no words and others have.

    Raises:
      TypeError: if it has another form.
    """
    if content is None or isinstance(content, str):
        return content or "", "", ""
    content = [content] if isinstance(content, dict) else content
    if not isinstance(content, list):
        raise TypeError
    texts, thoughts, refusals, unknown = [], [], [], False
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind, text = part.get("type", "text"), part.get("text")
        text = text.get("value") if isinstance(text, dict) else text
        if kind in _THOUGHTS or (kind in _PART_TEXTS and part.get("thought") is True):
            thoughts.append(_find_words(part.get(kind, text)))
        elif kind in _PART_TEXTS and isinstance(text, str):
            texts.append(text)
        elif kind == "refusal" and isinstance(part["refusal"], str):
            refusals.append(part["refusal"])
        elif kind not in _UNREADABLE_THOUGHTS and kind not in _TOOLS:
            unknown = True
            if kind in _PART_TEXTS or _find_words(part):
                raise TypeError
    if unknown and is_empty("".join(texts)):
        raise TypeError
    return "".join(texts), "".join(thoughts), "".join(refusals)


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


def _unwrap(answer: Any, depth: int = 4) -> Any:
    """Takes a completion out of the object around it, such as {"code": 0, "data": {"choices": …}}.

    An object that says that the request failed, or holds two completions, stays as it is.
    """
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if not isinstance(answer, dict) or "choices" in answer or not depth:
        return answer
    if _went_well(answer) is False or answer.get("error") or answer.get("errors"):
        return answer
    inner = (_unwrap(answer.get(name), depth - 1) for name in _ENVELOPES)
    found = [each for each in inner if isinstance(each, dict) and {"choices", "error"} & {*each}]
    return found[0] if len(found) == 1 else answer


def _with_choices(answer: Any) -> Any:
    """Returns Ollama's own form, {"message": {…}, "done_reason": "stop"}, as a completion."""
    message = answer.get("message") if isinstance(answer, dict) else None
    if (
        not isinstance(message, dict)
        or "choices" in answer
        or not {"role", "content"} <= {*message}
    ):
        return answer
    return answer | {"choices": [{"message": message, "finish_reason": answer.get("done_reason")}]}


def _went_well(answer: Mapping[str, Any]) -> bool | None:
    """Returns whether an object says that its request went well; None if it doesn't say."""
    states = [str(answer[name]).lower() for name in _STATES if answer.get(name) is not None]
    return set(states) <= _FINE if states else None


def _find_error(answer: Any) -> Any:
    """Returns the error that a response holds in place of a choice; None if it holds none."""
    if isinstance(answer, list) and all(isinstance(each, dict) for each in answer):
        return [error for error in map(_find_error, answer) if error] or None
    if not isinstance(answer, dict):
        return None
    choices = answer.get("choices")
    if isinstance(choices, list) and choices:
        first = choices[0]
        return first.get("error") if isinstance(first, dict) else None
    if choices is None:
        if answer.get("object") == "error":
            return answer
        names = ("error", "errors") if _went_well(answer) else _ERRORS
        return next(filter(None, map(answer.get, names)), None)
    return answer.get("error") or answer.get("errors")


def _words_of(error: Any) -> str:
    words = [
        each["message"] if isinstance(each, dict) and isinstance(each.get("message"), str) else each
        for each in _errors_in(error)
    ]
    return "; ".join(each if isinstance(each, str) else _dump(each) for each in words)


def _errors_in(error: Any, depth: int = 5) -> list[Any]:
    """Returns the errors in a list, or in an object around it."""
    if isinstance(error, list) and depth:
        return [found for each in error for found in _errors_in(each, depth - 1)]
    inner = error.get("error") if isinstance(error, dict) else None
    return _errors_in(inner, depth - 1) if isinstance(inner, dict | list) and depth else [error]


def _status_of(error: Any) -> int | None:
    """Returns the HTTP status in the code of the first error that has one."""
    for each in _errors_in(error):
        for name in ("code", "status", "status_code"):
            code = each.get(name) if isinstance(each, dict) else None
            if str(code).isdecimal() and 400 <= int(str(code)[:4]) < 600:
                return int(code)
    return None


def _dump(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return repr(type(value))
