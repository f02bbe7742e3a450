"""Prompts against the real tokenizer and the published template; positions against transformers."""

import base64
import importlib.util
import itertools
import pathlib

import numpy as np
import pytest
import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLModel,
    Qwen2TokenizerFast,
    Qwen2VLConfig,
    Qwen2VLModel,
    Qwen3VLConfig,
    Qwen3VLModel,
)

from mirg_jax.data.examples import Example
from mirg_jax.data.prompts import FORBIDDEN, PromptStyle, chat_text, encode, mrope_positions
from mirg_jax.errors import DataError

IMAGE = 151655
# Added tokens of Qwen2-VL's tokenizer, from id 151643 on.
ADDED = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>"),
    *("<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)


def split_by_rank(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Byte-pair merging with the tokens of lower rank alone: the two parts `token` is merged of."""
    parts, limit = [token[i : i + 1] for i in range(len(token))], ranks[token]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, limit) for a, b in itertools.pairwise(parts)]
        best = min(range(len(pairs)), key=pairs.__getitem__)
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def bytes_to_letters() -> list[str]:
    """GPT-2's printable letter for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b if b in printable else next(others)) for b in range(256)]


@pytest.fixture(scope="session")
def tokenizer():
    """The real Qwen2-VL tokenizer, rebuilt from the vocabulary that dashscope ships."""
    spec = importlib.util.find_spec("dashscope")  # not imported: only its file is wanted
    if spec is None:
        pytest.skip("needs `pip install dashscope`, which ships Qwen's vocabulary")
    file = pathlib.Path(spec.origin).parent / "resources" / "qwen.tiktoken"
    pairs = (line.split() for line in file.read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    letters = bytes_to_letters()

    def text(token: bytes) -> str:
        return "".join(letters[b] for b in token)

    merges = [tuple(map(text, split_by_rank(token, ranks))) for token in ranks if len(token) > 1]
    assert len(ranks) == 151643 and len(merges) == 151387
    vocabulary = {text(token): rank for token, rank in ranks.items()}
    tokenizer = Qwen2TokenizerFast(
        vocab=vocabulary, merges=merges, extra_special_tokens=list(ADDED)
    )
    assert tokenizer.convert_tokens_to_ids(list(ADDED)) == list(range(151643, 151657))
    return tokenizer


def published_template(messages: list[dict]) -> str:
    """What Qwen2-VL's chat template renders, with a generation prompt."""
    text = ""
    if messages[0]["role"] != "system":
        text += "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    for message in messages:
        text += f"<|im_start|>{message['role']}\n"
        for part in message["content"]:
            image = part["type"] == "image"
            text += "<|vision_start|><|image_pad|><|vision_end|>" if image else part["text"]
        text += "<|im_end|>\n"
    return text + "<|im_start|>assistant\n"


def as_processor(text: str, grids, tokenizer) -> list[int]:
    """As transformers' processor: each image pad repeated in the text, then tokenized."""
    before, *after = text.split("<|image_pad|>")
    pads = ["<|image_pad|>" * (rows * columns) for rows, columns in grids]
    text = before + "".join(pad + piece for pad, piece in zip(pads, after, strict=True))
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def words(text):
    return {"type": "text", "text": text}


PICTURE = {"type": "image"}
BOX = "<|object_ref_start|>the red mug<|object_ref_end|><|box_start|>(12,0),(999,1000)<|box_end|>"

# Question, style, number of images, the messages they stand for.
PROMPTS = {
    "unmarked images come first": (
        f"Where is {BOX} in the others?",
        PromptStyle(image_label=""),
        3,
        [{"role": "user", "content": [*[PICTURE] * 3, words(f"Where is {BOX} in the others?")]}],
    ),
    "labels and marks": (
        f"Look at <image> and then <image>.\nFind <bbox_id>[2-1]</bbox_id> {BOX}",
        PromptStyle(),
        2,
        [
            {
                "role": "user",
                "content": [
                    words("Look at Image-1: "),
                    PICTURE,
                    words(" and then Image-2: "),
                    PICTURE,
                    words(f".\nFind <bbox_id>[2-1]</bbox_id> {BOX}"),
                ],
            }
        ],
    ),
    "Chinese, a mark for the last image only": (
        "请在<image>中找到与前面图片相同的物体,并输出它的边界框。“杯子”在哪里?🙂",
        PromptStyle(system="你是一个有用的助手。", image_label="图{n}:"),
        3,
        [
            {"role": "system", "content": [words("你是一个有用的助手。")]},
            {
                "role": "user",
                "content": [
                    words("图1:"),
                    PICTURE,
                    words("图2:"),
                    PICTURE,
                    words("请在图3:"),
                    PICTURE,
                    words("中找到与前面图片相同的物体,并输出它的边界框。“杯子”在哪里?🙂"),
                ],
            },
        ],
    ),
    "an instruction, no image": (
        "Is 1234 a box?  ",
        PromptStyle(instruction="Think first: <think></think><answer></answer>"),
        0,
        [
            {
                "role": "user",
                "content": [
                    words("Is 1234 a box?  \nThink first: <think></think><answer></answer>")
                ],
            }
        ],
    ),
}
GRIDS = ((2, 3), (1, 1), (4, 2))


@pytest.mark.parametrize("name", PROMPTS)
def test_tokens_equal_the_published_template_and_tokenizer(tokenizer, name):
    question, style, images, messages = PROMPTS[name]
    text = published_template(messages)
    assert chat_text(question, images, style) == text
    grids = GRIDS[:images]
    example = Example("1", "unknown", ("a.jpg",) * images, question, ())
    encoded = encode(example, grids, tokenizer, style)
    expected = as_processor(text, grids, tokenizer)
    assert encoded.tokens.tolist() == expected
    assert encoded.prompt_length == len(expected)
    assert tokenizer.decode(encoded.tokens).count("<|image_pad|>") == sum(r * c for r, c in grids)
    for start, (rows, columns) in zip(encoded.image_starts, grids, strict=True):
        assert expected[start - 1] == 151652 and expected[start + rows * columns] == 151653
        assert set(expected[start : start + rows * columns]) == {IMAGE}


def test_response_follows_the_prompt(tokenizer):
    """As in the template with an assistant's message; only the response is to be learned."""
    response = f"<think>It is <bbox_id>[2-1]</bbox_id>{BOX}.</think><answer>{BOX}</answer>"
    example = Example("1", "unknown", ("a.jpg", "b.jpg"), "Where?", ())
    prompt = encode(example, GRIDS[:2], tokenizer, PromptStyle())
    encoded = encode(example, GRIDS[:2], tokenizer, PromptStyle(), response)
    whole = chat_text("Where?", 2, PromptStyle()) + response + "<|im_end|>"
    assert encoded.tokens.tolist() == as_processor(whole, GRIDS[:2], tokenizer)
    assert encoded.prompt_length == prompt.prompt_length == len(prompt.tokens)
    assert encoded.image_starts == prompt.image_starts
    learned = encoded.tokens[encoded.prompt_length :]
    assert tokenizer.decode(learned, skip_special_tokens=False) == response + "<|im_end|>"
    np.testing.assert_array_equal(encoded.positions[: len(prompt.tokens)], prompt.positions)


def test_grammar_in_tokens(tokenizer):
    """What box lengths and the sampler count on: digits are single, so is the comma between."""
    ids = tokenizer.encode("<|box_start|>(316,58),(764,999)<|box_end|>", add_special_tokens=False)
    pieces = [tokenizer.decode([i]) for i in ids]
    assert pieces == ["<|box_start|>", "(", *"316", ",", *"58", "),(", *"764", ",", *"999", ")"] + [
        "<|box_end|>"
    ]


@pytest.mark.parametrize("token", FORBIDDEN)
def test_control_tokens_are_refused(tokenizer, token):
    with pytest.raises(DataError, match="control token"):
        chat_text(f"before {token} after", 1, PromptStyle())
    example = Example("1", "unknown", (), "Where?", ())
    with pytest.raises(DataError, match="control token"):
        encode(example, (), tokenizer, PromptStyle(), f"there {token}")


def test_more_marks_than_images():
    with pytest.raises(DataError, match="2 <image> marks for 1 images"):
        chat_text("<image> and <image>", 1, PromptStyle())


def test_no_system_message():
    text = chat_text("Where?", 0, PromptStyle(system=""))
    assert text == "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"


def test_a_thinking_variant_s_first_words_are_given(tokenizer):
    """As in the template of Qwen3-VL's thinking variants; what is learned begins after them."""
    style = PromptStyle(system="", thinking=True)
    text = "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert chat_text("Where?", 0, style) == text and text.endswith(style.opening)
    example = Example("1", "unknown", (), "Where?", ())
    rest = f"There.</think><answer>{BOX}</answer>"
    for response in (f"<think>{rest}", f"<think>\n{rest}"):
        encoded = encode(example, (), tokenizer, style, response)
        assert encoded.tokens.tolist() == as_processor(f"{text}{rest}<|im_end|>", (), tokenizer)
        prompt = encoded.tokens[: encoded.prompt_length]
        assert tokenizer.decode(prompt, skip_special_tokens=False) == text
    with pytest.raises(DataError, match="doesn't begin with <think>"):
        encode(example, (), tokenizer, style, "<answer>There.</answer>")


@pytest.mark.parametrize(
    "theirs",
    [
        (Qwen2VLModel, Qwen2VLConfig),
        (Qwen2_5_VLModel, Qwen2_5_VLConfig),
        (Qwen3VLModel, Qwen3VLConfig),
    ],
)
def test_positions_equal_transformers(theirs):
    """500 random layouts: 0 to 6 images, text of any length around them."""
    model = theirs[0].__new__(theirs[0])  # get_rope_index needs the sizes, no weights
    torch.nn.Module.__init__(model)
    model.config = theirs[1]()
    rng = np.random.default_rng(0)
    for _ in range(500):
        count = rng.integers(0, 7)
        grids = [tuple(map(int, rng.integers(1, 9, 2))) for _ in range(count)]
        tokens = [5] * rng.integers(0 if count else 1, 9)
        for i, (rows, columns) in enumerate(grids):
            last = i == count - 1
            tokens += [IMAGE] * (rows * columns) + [5] * rng.integers(0 if last else 1, 9)
        ids = torch.tensor(tokens)[None]
        expected, delta = model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == IMAGE).int(),
            image_grid_thw=torch.tensor([[1, 2 * r, 2 * c] for r, c in grids]),
        )
        ours = mrope_positions(np.array(tokens), grids, IMAGE)
        np.testing.assert_array_equal(ours, expected[:, 0].T)
        assert ours.max() + 1 == len(tokens) + delta.item()  # where a completion starts
