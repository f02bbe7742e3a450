import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mirg_jax.grounding.grammar import GroundedObject, format_object
from mirg_jax.scenes import small_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    small_tokenizer.write(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    return AutoTokenizer.from_pretrained(folder)


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def test_an_object_is_eleven_tokens(tokenizer):
    text = format_object(GroundedObject((0, 20, 480, 1000), 3, 2, "red circle"))
    assert tokenizer.convert_ids_to_tokens(encode(tokenizer, text)) == [
        "<bbox_id>[3-2]</bbox_id>",
        "<|object_ref_start|>",
        "red",
        "Ġcircle",
        "<|object_ref_end|>",
        "<|box_start|>",
        "(0,",
        "20),",
        "(480,",
        "1000)",
        "<|box_end|>",
    ]


@settings(max_examples=200, deadline=None)
@given(text=st.text() | st.text("0123456789(),.<>|[]- \n:imageImage/"))
def test_any_text_comes_back(tokenizer, text):
    ids = encode(tokenizer, text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert max(ids, default=0) < len(tokenizer)


def test_special_tokens_are_one_token_each(tokenizer):
    ids = encode(tokenizer, "".join(small_tokenizer.SPECIAL_TOKENS))
    assert tokenizer.convert_ids_to_tokens(ids) == list(small_tokenizer.SPECIAL_TOKENS)
    assert tokenizer.eos_token == "<|im_end|>"
    assert "<|box_start|>" in tokenizer.decode(ids, skip_special_tokens=False)


def test_coordinates_off_the_coarse_grid_fall_apart(tokenizer):
    pieces = tokenizer.convert_ids_to_tokens(encode(tokenizer, "(387,40),(1120,60)"))
    assert pieces[:5] == ["(", "3", "8", "7", ","] and "40)," in pieces
    assert len(pieces) > 8
