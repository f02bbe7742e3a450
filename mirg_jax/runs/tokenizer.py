"""Loading of a model's tokenizer, and checks that it belongs to the model."""

import contextlib
import io
import os
import pathlib
import re

from mirg_jax.data.prompts import FORBIDDEN as CONTROL_TOKENS
from mirg_jax.data.prompts import PromptStyle, Tokenizer
from mirg_jax.errors import CheckpointError
from mirg_jax.files.stand_ins import find_stand_in_of
from mirg_jax.files.streams import say
from mirg_jax.models.config import ModelConfig
from mirg_jax.sharding import processes

# Either of these is a whole vocabulary.
_VOCABULARIES = ({"tokenizer.json"}, {"vocab.json", "merges.txt"})
_SETTINGS = {"tokenizer_config.json"}

_NO_LIMIT = 2**62  # tokens

# Fields of config.json that name a token.
_FIELDS = {
    "<|image_pad|>": "image_token_id",
    "<|video_pad|>": "video_token_id",
    "<|vision_start|>": "vision_start_token_id",
    "<|vision_end|>": "vision_end_token_id",
}

# Where a chat template may be, and how that of a thinking variant begins the answer itself.
_TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
_OPENING = re.compile(r"<\|im_start\|>assistant(\\+n|\s)<think>")


def begins_thoughts(folder: str | pathlib.Path) -> bool:
    """Returns whether a model's chat template begins the answer with `<think>`.

    It does in Qwen3-VL's thinking variants, for which `prompt.thinking` is to be set.
    """
    paths = (pathlib.Path(folder) / name for name in _TEMPLATES)
    return any(
        _OPENING.search(path.read_text(encoding="utf-8", errors="replace"))
        for path in paths
        if path.is_file()
    )


def say_if_begun(folder: str | pathlib.Path, style: PromptStyle) -> None:
    """Says in a line if a model's chat template begins thoughts, and prompts don't."""
    if not style.thinking and begins_thoughts(folder) and processes.is_first():
        say(
            f"{folder}: its chat template begins answers with <think>, and prompts here don't; set "
            "--config.prompt.thinking=True for a thinking variant"
        )


def load_tokenizer(folder: str | pathlib.Path) -> Tokenizer:
    """Loads the tokenizer in a model's folder.

    Raises:
      CheckpointError: if the folder has no tokenizer, or that of another model.
    """
    folder = pathlib.Path(folder)
    remedy = "copy tokenizer.json from the model that it was made from into the folder"
    if not any(all((folder / name).exists() for name in names) for names in _VOCABULARIES):
        raise CheckpointError(f"{folder}: no tokenizer.json; {remedy}")
    for path in (folder / name for names in (*_VOCABULARIES, _SETTINGS) for name in names):
        if stand_in := find_stand_in_of(path):
            raise CheckpointError(f"{path}: is {stand_in[0]} and no tokenizer; {stand_in[1]}")
    try:
        # Imported here, since settings of the environment can make the import itself fail.
        with contextlib.redirect_stdout(io.StringIO()):
            # We use it only for tokenizers; without this it warns that PyTorch is missing.
            os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
            from transformers import AutoTokenizer

        # `data.shapes` limits prompts. With a limit of its own it would warn of longer ones.
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, model_max_length=_NO_LIMIT
        )
    except Exception as error:  # the library raises many types, tokenizers a bare Exception
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(
            f"{folder}: the tokenizer can't be loaded ({reason}); {remedy}"
        ) from None
    check(tokenizer, ModelConfig.from_folder(folder), folder)
    return tokenizer


def check(tokenizer: Tokenizer, config: ModelConfig, folder: pathlib.Path) -> None:
    """Checks that every token has an embedding, and that control tokens are single tokens.

    Args:
      tokenizer: the tokenizer.
      config: the model's configuration.
      folder: their folder, for the message.

    Raises:
      CheckpointError: if they don't fit together.
    """
    remedy = "give the model and the tokenizer that it was trained with"
    rows = config.text.vocab_size
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if largest >= rows:
        raise CheckpointError(
            f"{folder}: the tokenizer's {token!r} has the ID {largest}, but the model has only "
            f"vocab_size={rows} embeddings; {remedy}, or resize the embedding"
        )
    ids = {name: tokenizer.encode(name, add_special_tokens=False) for name in CONTROL_TOKENS}
    if unknown := [name for name, found in ids.items() if len(found) != 1]:
        raise CheckpointError(
            f"{folder}: the tokenizer has no token {', '.join(unknown)}; {remedy}"
        )
    for name, field in _FIELDS.items():
        if ids[name] != [wanted := getattr(config, field)]:
            raise CheckpointError(
                f"{folder}: config.json says {field}={wanted}, but the tokenizer's {name} is "
                f"{ids[name][0]}; {remedy}"
            )
