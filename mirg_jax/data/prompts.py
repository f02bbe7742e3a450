"""Chat prompts: text and images → token ids, M-RoPE positions and the places of visual tokens."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Int

from mirg_jax.data.examples import IMAGE_MARK, Example
from mirg_jax.errors import DataError

IMAGE_PAD = "<|image_pad|>"
END_OF_TURN = "<|im_end|>"
# Text of a data set may hold boxes and object references, never what structures the prompt.
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


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def convert_tokens_to_ids(self, token: str) -> int: ...


@dataclasses.dataclass(frozen=True)
class PromptStyle:
    """Wording around a question.

    Attributes:
      system: the system message (Qwen2-VL's own by default); empty for none.
      image_label: put before each image, `{n}` counts from 1; empty for none.
      instruction: appended to the question on a line of its own; empty for none.
    """

    system: str = "You are a helpful assistant."
    image_label: str = "Image-{n}: "
    instruction: str = ""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One prompt, with or without its response, as the model reads it.

    Attributes:
      tokens: [T].
      positions: [T, 3] M-RoPE positions (time, height, width).
      image_starts: where each image's visual tokens begin.
      prompt_length: how many tokens are prompt; the rest is the response, which is learned.
    """

    tokens: Int[np.ndarray, " T"]
    positions: Int[np.ndarray, "T 3"]
    image_starts: tuple[int, ...]
    prompt_length: int


def chat_text(question: str, num_images: int, style: PromptStyle) -> str:
    """The prompt as text, one `<|image_pad|>` an image, in Qwen2-VL's chat template.

    `<image>` marks say where images go; images without a mark come first, in order.

    Raises:
      DataError: for more marks than images, or a control token inside the question.
    """
    for token in FORBIDDEN:
        if token in question:
            raise DataError(f"the question holds the control token {token}; remove it")
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
    if style.instruction:
        body += "\n" + style.instruction
    system = f"<|im_start|>system\n{style.system}{END_OF_TURN}\n" if style.system else ""
    return f"{system}<|im_start|>user\n{body}{END_OF_TURN}\n<|im_start|>assistant\n"


def mrope_positions(
    tokens: Int[np.ndarray, " T"],
    grids: Sequence[tuple[int, int]],
    image_token: int,
) -> Int[np.ndarray, "T 3"]:
    """M-RoPE positions (Qwen2-VL, arXiv 2409.12191, section 2.1).

    Text advances all three axes together. The tokens of an image share one time, and their
    height and width count from it; what follows goes on after the largest of the three.

    Args:
      grids: rows and columns of each image, in visual tokens.
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
    """Encodes an example's prompt, and its response with the end-of-turn token if given.

    Args:
      grids: rows and columns of each image, in visual tokens.

    Raises:
      DataError: as `chat_text`, or for control tokens in the response.
    """
    text = chat_text(example.question, len(example.images), style)
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
            raise DataError(f"the response holds the control token {held[0]}; remove it")
        ids = tokenizer.encode(response + END_OF_TURN, add_special_tokens=False)
        tokens = np.concatenate([tokens, np.array(ids, np.int32)])
    return Encoded(
        tokens=tokens,
        positions=mrope_positions(tokens, grids, image_token),
        image_starts=tuple(starts.tolist()),
        prompt_length=prompt_length,
    )
