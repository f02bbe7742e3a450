"""Reading servers' responses, whatever they contain, and encoding images."""

import asyncio
import base64
import datetime
import email.utils
import io
import json
import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mirg_jax.chat.client import (
    Client,
    Retry,
    Unanswerable,
    check_extra_body,
    encode_image,
    retry_after,
)
from mirg_jax.chat.completions import (
    Reply,
    ServerError,
    is_empty,
    quote_words,
    read_completion,
)
from mirg_jax.errors import ConfigError, DataError, UserError

FIELDS = "choices message content refusal usage finish_reason reasoning error type text".split()
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(FIELDS) | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_any_json_is_a_reply_or_of_another_form(answer):
    try:
        reply = read_completion(answer)
    except ValueError:
        return
    assert isinstance(reply, Reply) and (reply.text or reply.problem)


def test_completions():
    def completion(finish="stop", **message):
        return {"choices": [{"message": message, "finish_reason": finish}]}

    assert read_completion(completion(content="yes")) == Reply("yes")
    usage = {"usage": {"prompt_tokens": 7, "completion_tokens": 3}}
    assert read_completion(completion(content="yes") | usage) == Reply("yes", "", 7, 3)
    assert read_completion({"choices": []} | usage).problem == "no choice in the answer"
    assert "cut" in read_completion(completion("length", content="ye")).problem
    refused = read_completion(completion(content=None, refusal="no"))
    assert refused == Reply("no", "the model refused")
    parts = [{"type": "refusal", "refusal": "no"}]
    assert read_completion(completion(content=parts)) == Reply("no", "the model refused")
    assert read_completion([completion(content="yes")]) == Reply("yes")
    redacted = [{"type": "redacted_thinking", "data": "QUJD"}]
    assert read_completion(completion(content=redacted)) == Reply("", "an empty answer")
    assert read_completion(completion(content="")).problem == "an empty answer"
    assert (
        read_completion(completion(content="my sk-123456!"), hide="sk-123456").text == "my [key]!"
    )
    # What is shorter may be there by chance, and without a key nothing is hidden.
    assert read_completion(completion(content="(100,210)"), hide="1").text == "(100,210)"


ANSWER = "<answer>Image-1: (1,2),(3,4)</answer>"
WHOLE = f"<think>I look.</think>{ANSWER}"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": ANSWER, "reasoning": "I look."}, WHOLE),
        ({"content": ANSWER, "reasoning_content": "I look."}, WHOLE),
        ({"content": ANSWER, "thinking": "I look."}, WHOLE),
        ({"content": ANSWER, "reasoning_text": "I look."}, WHOLE),
        ({"content": ANSWER, "thought": "I look."}, WHOLE),
        ({"content": f"[THINK]I look.[/THINK]{ANSWER}"}, WHOLE),
        ({"content": f"<seed:think>I look.</seed:think>{ANSWER}"}, WHOLE),
        ({"content": WHOLE.replace("<think>", "◁think▷").replace("</think>", "◁/think▷")}, WHOLE),
        ({"content": ANSWER, "reasoning": None, "reasoning_content": "I look."}, WHOLE),
        ({"content": ANSWER, "reasoning_details": [{"text": "I "}, {"text": "look."}]}, WHOLE),
        ({"content": ANSWER, "reasoning": {"content": "I look."}}, WHOLE),
        ({"content": ANSWER, "reasoning": {"summary": [{"text": "I "}, "look."]}}, WHOLE),
        ({"content": ANSWER, "thinking": [{"type": "text", "text": "I look."}]}, WHOLE),
        ({"content": ANSWER, "reasoning_details": [{"summary": "I look."}]}, WHOLE),
        # All of it taken for thoughts, with and without the tags around them.
        ({"content": None, "reasoning": WHOLE + "<|im_end|>"}, WHOLE + "<|im_end|>"),
        ({"content": "<|im_end|>", "reasoning": WHOLE + "\n</s>\n"}, WHOLE + "\n</s>\n"),
        ({"content": None, "reasoning": WHOLE}, WHOLE),
        ({"content": "\n", "reasoning": WHOLE.removeprefix("<think>")}, WHOLE),
        ({"reasoning_content": ANSWER}, ANSWER),
        # Content as parts.
        ({"content": [{"type": "text", "text": "(1,2),"}, {"type": "text", "text": "(3,4)"}]},
         "(1,2),(3,4)"),
        ({"content": ["(1,2),", "(3,4)"]}, "(1,2),(3,4)"),
        ({"content": [{"type": "output_text", "text": "(1,2)"}]}, "(1,2)"),
        ({"content": {"type": "text", "text": "(1,2)"}}, "(1,2)"),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "I look."}]},
                      {"type": "text", "text": ANSWER}]}, WHOLE),
        ({"content": [{"text": "I look.", "thought": True}, {"text": ANSWER}]}, WHOLE),
        ({"content": [{"type": "redacted_thinking", "data": "QUJD"},
                      {"type": "text", "text": ANSWER}]}, ANSWER),
        ({"content": [{"type": "text", "text": {"value": "(1,2)", "annotations": []}}]}, "(1,2)"),
        ({"content": [{"type": "tool_use", "id": "7"}, {"type": "text", "text": "(1,2)"}]},
         "(1,2)"),
        # The template has the opening tag in the prompt.
        ({"content": WHOLE.removeprefix("<think>")}, WHOLE),
        ({"content": "</think>" + ANSWER}, "<think></think>" + ANSWER),
        ({"content": "</think>" + ANSWER, "reasoning": "I look."}, WHOLE),
        ({"content": "I look.</think>\n(1,2),(3,4)"}, "<think>I look.</think>\n(1,2),(3,4)"),
        # Other ends of thoughts stay.
        ({"content": ANSWER + "</think>"}, ANSWER + "</think>"),
        ({"content": WHOLE + "</think>"}, WHOLE + "</think>"),
    ],
)  # fmt: skip
def test_dialects_that_say_the_same(message, text):
    for answer in (
        {"choices": [{"message": message, "finish_reason": "stop"}]},
        json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}),  # as text/plain
    ):
        assert read_completion(answer) == Reply(text)


@pytest.mark.parametrize(
    ("finish", "problem"),
    [
        *(
            (finish, "the answer was cut at max_tokens")
            for finish in (
                "length", "max_tokens", "MAX_TOKENS", "FinishReason.LENGTH",
                "FinishReason.MAX_TOKENS", "FINISH_REASON_MAX_TOKENS", "maxTokens",
                "MaxTokens", "max-tokens", "Max Tokens", {"type": "LENGTH", "length": 9},
                "model_context_window_exceeded", "context_length_exceeded", "max_completion_tokens",
            )
        ),
        *(
            (finish, "the answer was filtered")
            for finish in (
                "content_filter", "SAFETY", "ContentFilter", "FinishReason.SAFETY",
                "guardrail_intervened", "ERROR_TOXIC",
            )
        ),
        *(
            (finish, f"the answer ended for an unknown reason (finish_reason {told!r})")
            for finish, told in (
                ("pause_turn", "pause_turn"), ("FinishReason.OTHER", "FinishReason.OTHER"),
                ("MALFORMED_RESPONSE", "MALFORMED_RESPONSE"), (7, "7"), (True, "true"),
                ({"type": "load"}, '{"type": "load"}'), (90 * "x", 80 * "x"),
            )
        ),
        *((finish, "the model refused") for finish in ("refusal", "StopReason.REFUSAL")),
        *((finish, None) for finish in ("FinishReason.ERROR", "FINISH_REASON_CANCELLED")),
        *((finish, "") for finish in (
            "stop", "eos", "end_turn", None, "tool_calls", "", "STOP", "FinishReason.STOP",
            "eos_token", "stop_sequence", "COMPLETE", "endTurn", "normal", {"type": "stop"},
        )),
        *((finish, None) for finish in (
            "abort", "error", "cancelled", {"type": "abort"}, "time_limit", "USER_CANCEL",
        )),
    ],
)  # fmt: skip
def test_why_an_answer_ended(finish, problem):
    answer = {"choices": [{"message": {"content": ANSWER}, "finish_reason": finish}]}
    if problem is not None:
        assert read_completion(answer) == Reply(ANSWER, problem)
        return
    with pytest.raises(ServerError, match="the server broke the answer off") as error:
        read_completion(answer)
    assert error.value.status is None  # so it is asked for again


@pytest.mark.parametrize(
    ("message", "finish"),
    [
        ({"content": None, "tool_calls": [{"function": {"name": "search"}}]}, "tool_calls"),
        ({"content": "", "tool_calls": [{"function": {"name": "search"}}]}, "stop"),
        ({"content": None, "function_call": {"name": "search"}}, "function_call"),
        ({"content": [{"type": "tool_use", "name": "search"}]}, "tool_use"),
        ({"content": None, "reasoning": "I search.", "tool_calls": [{"id": "search"}]}, "stop"),
    ],
)
def test_a_call_of_a_tool_is_no_answer(message, finish):
    def reply(**changes):
        choice = {"message": message | changes, "finish_reason": finish}
        return read_completion({"choices": [choice]})

    assert reply().text == "" and not reply().problem.startswith("an empty answer: the server")
    assert re.search(
        r"empty answer: the model called a tool \(.*search.*\); leave", reply().problem
    )
    assert reply(content=WHOLE) == Reply(WHOLE)
    cut = read_completion({"choices": [{"message": message, "finish_reason": "length"}]})
    assert cut.problem == "the answer was cut at max_tokens"


@pytest.mark.parametrize(
    "around",
    [
        '{"code": 0, "message": "success", "data": COMPLETION}',
        '{"code": "200", "msg": "ok", "success": true, "data": COMPLETION, "error": null}',
        '{"result": COMPLETION, "errors": []}',
        '[{"response": {"status_code": 200, "body": COMPLETION}}]',
        '{"status": "COMPLETED", "output": [COMPLETION]}',
    ],
)
def test_a_completion_inside_another_object_is_read(around):
    completion = {"choices": [{"message": {"content": "yes"}}], "usage": {"prompt_tokens": 7}}
    answer = around.replace("COMPLETION", json.dumps(completion))
    assert read_completion(json.loads(answer)) == read_completion(answer) == Reply("yes", "", 7)
    with pytest.raises(ServerError, match="no room"):
        read_completion(around.replace("COMPLETION", '{"error": {"message": "no room"}}'))


def test_ollamas_own_form_is_read():
    """It was taken for an error, for what is called message."""
    answer = {"model": "m", "message": {"role": "assistant", "content": WHOLE}, "done": True}
    assert read_completion(answer) == Reply(WHOLE, model="m")
    cut = answer | {"done_reason": "length"}
    assert read_completion("\ufeff" + json.dumps(cut)).problem == "the answer was cut at max_tokens"
    with pytest.raises(ServerError, match="no such model"):
        read_completion({"code": 404, "message": {"text": "no such model"}})


@pytest.mark.parametrize("text", ["<|im_end|>", "\n<|endoftext|> <|im_end|>\n", "</s></s>"])
def test_end_tokens_alone_are_an_empty_answer(text):
    answer = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
    assert is_empty(text) and not is_empty(text + "(1,2)")
    assert read_completion(answer) == Reply("", "an empty answer")


def test_the_text_of_another_endpoint_is_read():
    answer = {"choices": [{"text": "(1,2),(3,4)", "finish_reason": "stop"}]}
    assert read_completion(answer) == Reply("(1,2),(3,4)")


def test_thoughts_without_an_answer_are_no_answer():
    def reply(finish, **message):
        return read_completion({"choices": [{"message": message, "finish_reason": finish}]})

    taken = reply("stop", content=None, reasoning="The dog is at (1,2),(3,4).")
    assert taken.text == "" and "took all of it for reasoning ('The dog is at" in taken.problem
    cut = reply("length", content=None, reasoning="The dog is at (1,2),(3,4)")
    assert cut == Reply("<think>The dog is at (1,2),(3,4)", "the answer was cut at max_tokens")
    filtered = reply("content_filter", content=None, reasoning="The dog")
    assert filtered == Reply("", "the answer was filtered")


PAGE = "<html><head><title>502</title><style>b {}</style></head><b>No such\nhost</b></html>"
LONG = "data:image/jpeg;base64," + 100_000 * "QUJD"


@pytest.mark.parametrize(
    ("answer", "words", "status"),
    [
        ({"error": {"message": "out of memory", "code": 500}}, "out of memory", 500),
        ({"error": {"message": "no such model", "code": "404"}}, "no such model", 404),
        ({"error": "overloaded"}, "overloaded", None),
        ({"object": "error", "message": "too long", "code": 400}, "too long", 400),
        ({"detail": [{"msg": "field required"}]}, "field required", None),
        ({"choices": [{"error": {"message": "upstream", "code": 429}}]}, "upstream", 429),
        ({"choices": [], "error": {"message": "no"}}, "no", None),
        ({"error": [{"message": "too many"}, {"message": "wait", "code": 429}]},
         "too many; wait", 429),
        ([{"error": {"message": "no quota", "code": 429, "status": "EXHAUSTED"}}], "no quota", 429),
        ([{"error": {"message": "a"}}, {"error": {"message": "b", "code": 500}}], "a; b", 500),
        ({"errors": ["overloaded", "busy"]}, "overloaded; busy", None),
        ({"choices": [{"error": [{"message": "upstream"}]}]}, "upstream", None),
        ({"code": 401, "message": "no such key", "data": None}, "no such key", 401),
        ({"code": 1001, "msg": "busy", "data": {"choices": []}}, "busy", None),
        ({"success": False, "message": "busy", "result": {"choices": []}}, "busy", None),
    ],
)  # fmt: skip
def test_an_error_inside_a_success_is_passed_on(answer, words, status):
    with pytest.raises(ServerError) as error:
        read_completion(answer)
    assert words in str(error.value) and error.value.status == status


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (PAGE, "502 No such host"),
        ({"choices": [{"message": {"content": [{"type": "video"}]}}]}, '"type": "video"'),
        ({"choices": [{"message": {"content": [
            {"type": "text", "text": "(1,2)"}, {"type": "draft", "text": "(3,4)"}]}}]},
         '"type": "draft"'),
        ({"choices": [{"message": {"content": [{"type": "text", "text": 7}]}}]}, '"text": 7'),
        ({"result": "(1,2)"}, '{"result": "(1,2)"}'),
        ({"code": 0, "message": "success", "data": {"text": "(1,2)"}}, '"data": {"text": "(1,2)"}'),
        ({"data": {"choices": []}, "result": {"choices": []}}, '"result": {"choices": []}'),
        ({"result": LONG}, "data:image/jpeg;base64,…"),
        (f"cannot read {LONG}", "cannot read data:image/jpeg;base64,…"),
    ],
)  # fmt: skip
def test_what_is_no_completion_is_quoted(answer, words):
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        read_completion(answer)
    assert len(str(error.value)) < 400


def test_words_are_short_and_without_the_key():
    assert quote_words("a <b>bad</b> key sk-1\n", "sk-1") == "a bad key [key]"
    assert len(quote_words("x y " * 10_000)) == 300


def test_retry_after():
    assert retry_after({"retry-after": "2.5"}) == 2.5
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30)
    assert 25 < retry_after({"retry-after": email.utils.format_datetime(soon, True)}) <= 30
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    for header in ({}, {"retry-after": "soon"}, {"retry-after": "inf"}, {"retry-after": "nan"}):
        assert retry_after(header) is None


@given(st.text(max_size=30))
def test_no_header_breaks_retry_after(text):
    seconds = retry_after({"retry-after": text})
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(("size", "sent"), [((40, 30), (40, 30)), ((800, 200), (400, 100))])
def test_images_are_sent_small_enough_and_look_the_same(tmp_path, size, sent):
    ramp = np.linspace(0, 255, size[0]).astype(np.uint8)
    Image.fromarray(np.tile(ramp, (size[1], 1))).save(tmp_path / "a.png")
    url = encode_image(str(tmp_path), "a.png", 40_000)
    assert url.startswith("data:image/jpeg;base64,")
    image = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
    assert image.size == sent
    expected = np.linspace(0, 255, sent[0])
    assert np.abs(np.asarray(image.convert("L")).astype(float) - expected).max() < 6
    with pytest.raises(DataError, match="no such file"):
        encode_image(str(tmp_path), "b.png", 40_000)


def test_a_think_block_that_the_server_took_out_is_put_back():
    def said(**message):
        return read_completion({"choices": [{"message": message}]}).text

    answer = "<answer>Image-1: (1,2),(3,4)</answer>"
    assert said(content=answer, reasoning_content="I look.") == f"<think>I look.</think>{answer}"
    # Separate thoughts are ignored where the answer has its own block, or is in another form.
    whole = f"<think>I look.</think>{answer}"
    assert said(content=whole, reasoning_content="Hm.") == whole
    assert said(content="Image-1: a dog", reasoning_content="Hm.") == "Image-1: a dog"


@pytest.mark.parametrize(
    "base_url, variables, message",
    [
        ("localhost:8000/v1", {}, "base_url=localhost:8000/v1 .* http://HOST:PORT/v1"),
        ("/v1", {}, "base_url=/v1 .* http://HOST:PORT/v1"),
        ("http://[::1", {}, "base_url=http"),
        ("http://host:port/v1", {}, "port"),
        ("", {"OPENAI_BASE_URL": "api.example/v1"}, "OPENAI_BASE_URL"),
        ("http://localhost/v1", {"ALL_PROXY": "socks5://127.0.0.1:9"}, "socksio.* ALL_PROXY"),
        ("http://localhost/v1", {"HTTPS_PROXY": "ftp://proxy"}, "scheme.*HTTPS_PROXY"),
        ("http://localhost/v1", {"KEY": "clé"}, "KEY holds characters that no key has"),
        ("http://localhost/v1", {"KEY": "a\nb"}, "KEY holds characters that no key has"),
        ("http://localhost/v1", {"KEY": " \n"}, "KEY is not set"),
        ("http://localhost/v1", {"OPENAI_ORG_ID": "sk-中"}, "OPENAI_ORG_ID holds characters"),
        (
            "http://localhost/v1",
            {"OPENAI_PROJECT_ID": "a\nb"},
            "OPENAI_PROJECT_ID holds characters",
        ),
    ],
)
def test_settings_that_no_request_could_be_sent_with(monkeypatch, base_url, variables, message):
    for name, value in ({"KEY": "abc\n"} | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message) as error:
        Client("m", base_url=base_url, key_variable="KEY", timeout=1)
    assert "\n" not in str(error.value)


def test_a_request_that_cannot_be_written_is_told_before_it_is_sent():
    where = {"base_url": "http://127.0.0.1:9/v1", "key_variable": "", "timeout": 1}
    with pytest.raises(ConfigError, match="model: a request with it can't be written"):
        Client("m\udce9", **where)
    with pytest.raises(ConfigError, match="--extra_body: a request with it can't be written"):
        check_extra_body({"stop": ["\ud800"]}, "--extra_body")
    with pytest.raises(Unanswerable, match="the request can't be written"):
        asyncio.run(Client("m", **where).complete({"messages": "\ud800"}, "key"))


def test_a_failure_behind_a_proxy_names_its_variable_and_not_its_password(monkeypatch):
    for name in ("http_proxy", "all_proxy", "no_proxy", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://user:hunter2@127.0.0.1:9")

    def fail():
        client = Client("m", base_url="http://a.test/v1", key_variable="", timeout=9)
        with pytest.raises(Retry) as failed:
            asyncio.run(client.complete({}, "key"))
        return str(failed.value)

    said = fail()
    assert "(ConnectError), through the proxy that HTTP_PROXY names" in said
    assert "add a.test to NO_PROXY" in said and "hunter2" not in said
    client = Client("m", base_url="http://a.test/v1", key_variable="", timeout=1)
    for status in (403, 407):
        refused = client._error_of(status, f"HTTP {status}: no")
        assert isinstance(refused, UserError) and "HTTP_PROXY names" in str(refused)
    assert "PROXY" not in str(client._error_of(404, "HTTP 404: no"))
    monkeypatch.setenv("NO_PROXY", "b.test,a.test")
    assert "PROXY" not in str(client._error_of(407, "HTTP 407: no"))


def test_a_line_break_behind_a_key_is_no_part_of_it(monkeypatch):
    monkeypatch.setenv("KEY", "abc\n")
    Client("m", base_url="http://localhost/v1", key_variable="KEY", timeout=1)


def test_a_page_that_never_ends_is_quoted_in_time_that_grows_with_it():
    endless = 2_000 * "<script a " + "words"
    begun = time.process_time()
    quote_words(endless)
    assert time.process_time() - begun < 5  # it was half a minute


@pytest.mark.parametrize("url", ["http://user:hunter2@host:1/v1", "http://host:1/v1?key=hunter2"])
def test_messages_have_no_secrets_of_an_address(url):
    client = Client("m", base_url=url, key_variable="", timeout=1)
    assert "hunter2" not in client.base_url and "host:1/v1" in client.base_url
    with pytest.raises(ConfigError) as refused:
        Client("m", base_url=url.replace(":1/", ":99999/"), key_variable="", timeout=1)
    assert "host:99999/v1" in str(refused.value) and "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://user:pa/ss-hunter2@host:1/v1",
        "user:hunter2@host:1/v1",
        "http:/user:hunter2@host:1/v1",
        "https:user:hunter2@host:1/v1",
        "http:\\\\user:hunter2@host:1/v1",
        "http://user:hunter2#more@host:1/v1",
        "http://user:0?hunter2@host:1/v1",
    ],
)
def test_nor_of_one_that_is_no_address(url):
    with pytest.raises(ConfigError) as refused:
        Client("m", base_url=url, key_variable="", timeout=1)
    assert "host:1/v1" in str(refused.value) and "hunter2" not in str(refused.value)


def test_nor_of_a_proxy(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "http://user:hunter2/more@proxy:1")
    with pytest.raises(ConfigError) as refused:
        Client("m", base_url="http://host:1/v1", key_variable="", timeout=1)
    assert "ALL_PROXY" in str(refused.value) and "hunter2" not in str(refused.value)


def test_thoughts_with_tags_of_their_own_get_no_second_pair():
    message = {"content": "<answer>x</answer>", "reasoning_content": "<think>hm</think>"}
    answer = {"choices": [{"message": message}], "usage": "none"}
    assert read_completion(answer) == Reply("<think>hm</think><answer>x</answer>")
