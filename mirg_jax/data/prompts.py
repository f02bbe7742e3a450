"""Chat prompts: text and images → token IDs, M-RoPE positions, positions of visual tokens."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from mirg_jax.data.examples import IMAGE_MARK, Example
from mirg_jax.errors import DataError
from mirg_jax.grounding.grammar import THINK_START

IMAGE_PAD = "<|image_pad|>"
END_OF_TURN = "<|im_end|>"
# Text in the data may contain boxes and object references, but not the tokens of prompt structure.
FORBIDDEN = (
    "<|im_start|>",
    END_OF_TURN,
    "<|endoftext|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    IMAGE_PAD,
    "<|video_pad|>",
)


@runtime_checkable
class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer's interface that is used here."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def convert_tokens_to_ids(self, token: str) -> int: ...

    def get_vocab(self) -> dict[str, int]: ...


@dataclasses.dataclass(frozen=True)
class PromptStyle:
    """The text around a question.

    Attributes:
      system: system message (by default Qwen2-VL's own); empty for none.
      image_label: text before each image, where `{n}` is its number from 1; empty for none.
      instruction: text appended to the question on a separate line; empty for none.
      direct_instruction: what takes its place where an answer without thoughts is asked for.
      thinking: whether the prompt ends with the answer's first words, `opening`.
    """

    system: str = "You are a helpful assistant."
    image_label: str = "Image-{n}: "
    instruction: str = ""
    direct_instruction: str = "Answer at once, without thoughts."  # runs made before have none
    thinking: bool = False

    @property
    def opening(self) -> str:
        """The answer's first words, if they are a part of the prompt."""
        return f"{THINK_START}\n" if self.thinking else ""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A tokenised prompt, with or without its response.

    Attributes:
      tokens: token IDs.
      positions: M-RoPE positions (time, height, width).
      image_starts: position of each image's first visual token.
      prompt_length: number of prompt tokens; the rest is the response, which is learned.
    """

    tokens: Int[np.ndarray, " T"]
    positions: Int[np.ndarray, "T 3"]
    image_starts: tuple[int, ...]
    prompt_length: int


def chat_text(question: str, num_images: int, style: PromptStyle, *, direct: bool = False) -> str:
    """Formats a prompt with Qwen's chat template, with one `<|image_pad|>` per image.

    Args:
      question: the question; `<image>` marks the position of an image, and images without a mark
        come first, in order.
      num_images: number of images.
      style: the text around the question.
      direct: whether an answer without thoughts is asked for.

    Raises:
      DataError: if there are more marks than images, or the question contains a control token.
    """
    for token in FORBIDDEN:
        if token in question:
            raise DataError(f"the question contains the control token {token}; remove it")
    pieces = question.split(IMAGE_MARK)
    if len(pieces) - 1 > num_images:
        raise DataError(
            f"the question has {len(pieces) - 1} {IMAGE_MARK} marks for {num_images} images; "
            "remove a mark or add the image"
        )
    images = [
        style.image_label.format(n=n + 1) + f"<|vision_start|>{IMAGE_PAD}<|vision_end|>"
        for n in range(num_images)
    ]
    unmarked = num_images - (len(pieces) - 1)
    body = "".join(images[:unmarked]) + pieces[0]
    for image, piece in zip(images[unmarked:], pieces[1:], strict=True):
        body += image + piece
    if instruction := style.direct_instruction if direct else style.instruction:
        body += "\n" + instruction
    system = f"<|im_start|>system\n{style.system}{END_OF_TURN}\n" if style.system else ""
    turns = f"{system}<|im_start|>user\n{body}{END_OF_TURN}\n<|im_start|>assistant\n"
    return turns + style.opening


def mrope_positions(
    tokens: Int[np.ndarray, " T"],
    grids: Sequence[tuple[int, int]],
    image_token: int,
) -> Int[np.ndarray, "T 3"]:
    """Computes M-RoPE positions (Qwen2-VL, arXiv 2409.12191, section 2.1).

    For text, all three positions advance together. The tokens of an image share one time position
    t, and their height and width positions are t plus their row and column. The next token's
    position follows the largest of the three.

    Args:
      tokens: token IDs, with all visual tokens.
      grids: rows and columns of each image, in visual tokens.
      image_token: ID of the visual tokens.
    """
    positions = np.zeros((len(tokens), 3), np.int32)
    at, start = 0, 0
    for rows, columns in grids:
        image = at + int(np.argmax(tokens[at:] == image_token))
        positions[at:image] = start + np.arange(image - at)[:, None]
        start += image - at
        at = image + rows * columns
        height, width = np.divmod(np.arange(rows * columns), columns)
        positions[image:at] = start + np.stack([0 * height, height, width], axis=-1)
        start += max(rows, columns)
    positions[at:] = start + np.arange(len(tokens) - at)[:, None]
    return positions


def encode(
    example: Example,
    grids: Sequence[tuple[int, int]],
    tokenizer: Tokenizer,
    style: PromptStyle,
    response: str | None = None,
) -> Encoded:
    """Tokenises an example's prompt and, if given, its response with an end-of-turn token.

    Args:
      example: the example.
      grids: rows and columns of each image, in visual tokens.
      tokenizer: the tokenizer.
      style: the text around the question.
      response: the response to learn; None to encode the prompt only.

    Raises:
      DataError: if question or response contain control tokens, there are too many image marks, the
        response lacks the style's opening, or an answer without thoughts is asked for and the style
        has one.
    """
    if style.thinking and example.direct:
        raise DataError(
            "an answer without thoughts is asked for, and prompt.thinking begins them; set that to "
            "False, or leave such rows out"
        )
    text = chat_text(example.question, len(example.images), style, direct=bool(example.direct))
    ids = np.array(tokenizer.encode(text, add_special_tokens=False), np.int32)
    image_token = tokenizer.convert_tokens_to_ids(IMAGE_PAD)
    counts = np.ones(len(ids), np.int64)
    counts[ids == image_token] = [rows * columns for rows, columns in grids]
    starts = (np.cumsum(counts) - counts)[ids == image_token]
    tokens = np.repeat(ids, counts)
    prompt_length = len(tokens)
    if response is not None:
        held = [token for token in FORBIDDEN if token in response]
        if held:
            raise DataError(f"the response contains the control token {held[0]}; remove it")
        if style.thinking:
            if not response.startswith(THINK_START):
                raise DataError(
                    f"the response doesn't begin with {THINK_START}, as it does with "
                    "prompt.thinking; set that to False, or add the thoughts"
                )
            response = response.removeprefix(THINK_START).removeprefix("\n")
        ids = tokenizer.encode(response + END_OF_TURN, add_special_tokens=False)
        tokens = np.concatenate([tokens, np.array(ids, np.int32)])
    return Encoded(
        tokens=tokens,
        positions=mrope_positions(tokens, grids, image_token),
        image_starts=tuple(starts.tolist()),
        prompt_length=prompt_length,
    )
