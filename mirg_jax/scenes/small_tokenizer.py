"""A small tokenizer in Hugging Face's format, for small models trained on a CPU.

Text format and special tokens are Qwen2-VL's, so that code that writes or reads text needs no
changes. Frequent words, IDs and the coordinates of coarse boxes are one token each:

    <|box_start|> | (120, | 340), | (480, | 700) | <|box_end|>

All other text is split into bytes, as in Qwen2's tokenizer, so that decoding restores every text
exactly.
"""

import json
import pathlib

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from mirg_jax.grounding.boxes import GRID
from mirg_jax.grounding.grammar import (
    ANSWER_END,
    ANSWER_START,
    ORDINALS,
    THINK_END,
    THINK_START,
    format_id,
)
from mirg_jax.scenes.drawing import STEP

# In Qwen2-VL's order.
SPECIAL_TOKENS = tuple(
    f"<|{name}|>"
    for name in (
        "endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start "
        "quad_end vision_start vision_end vision_pad image_pad video_pad"
    ).split()
)
_IDS = tuple(format_id(image, number) for image in range(1, 7) for number in range(1, 5))
_TAGS = (THINK_START, THINK_END, ANSWER_START, ANSWER_END)

# Words of the chat template, of MIG-Bench's questions and of the procedural scenes.
_WORDS = (
    "system user assistant you are a helpful image images picture pictures photo object objects "
    "region regions source following followed by its several these those two three four share one "
    "in common recognize and locate this that it the last st nd rd th of to is for from with at on "
    "or not please find where what which who how there here given give me coordinates compare "
    "carefully their difference different between area described description sentence bounding box "
    "marked red blue green yellow purple black white orange circle square triangle cross ring any "
    "moving sequence containing look everywhere thing has have same colour shape show shows see "
    "new all left right top bottom real view provide corresponding list describe name answer "
    "person people man woman child dog cat car bus truck horse bird table chair bottle cup"
).split()
_OPENING = (
    "answer at compare describe find for give here image image images in it list locate look name "
    "object please provide recognize the there these this what where which who you"
).split()


def _vocabulary() -> list[str]:
    coordinates = [str(value) for value in range(0, GRID + 1, STEP)]
    words = [*_WORDS, *ORDINALS, *map(str.capitalize, _OPENING)]
    return [
        *_TAGS,
        *_IDS,
        *(f"({value}," for value in coordinates),
        *(f"{value})," for value in coordinates),
        *(f"{value})" for value in coordinates),
        ": ",
        *(f" {digit}" for digit in range(10)),
        *(f"{start}mage-{n}" for n in range(1, 7) for start in ("I", "i", " I", " i")),
        *words,
        *(f" {word}" for word in words),
    ]


def _pattern() -> str:
    """Returns the regular expression of pieces; pieces outside the vocabulary become bytes."""
    coarse = "|".join(str(value) for value in range(GRID, -1, -STEP))
    return "|".join(
        (
            r"<bbox_id>\[\d-\d\]</bbox_id>",
            r"</?(?:think|answer)>",
            rf"\((?:{coarse}),(?=\d)",
            rf"(?<![\d.])(?:{coarse})\),(?=\()",
            rf"(?<![\d.])(?:{coarse})\)",
            r": ",
            r" ?[Ii]mage-\d",
            r" ?\p{L}+",
            r" ?\p{N}",
            r".",
        )
    )


def build() -> Tokenizer:
    """Builds the tokenizer; token IDs are ordered as bytes, vocabulary, special tokens."""
    bytes_first = sorted(pre_tokenizers.ByteLevel.alphabet())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = ["".join(p for p, _ in to_bytes.pre_tokenize_str(t)) for t in _vocabulary()]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(bytes_first + pieces))}
    # A piece in the vocabulary is one token; without merges, all others are split into bytes.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    cut = pre_tokenizers.Split(Regex(_pattern()), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return tokenizer


def write(folder: str | pathlib.Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer loads."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    build().save(str(folder / "tokenizer.json"), pretty=False)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": list(SPECIAL_TOKENS),
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
    }
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
