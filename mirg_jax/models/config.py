"""Configurations of Qwen2-VL, Qwen2.5-VL and Qwen3-VL, converted from and to `config.json`."""

import dataclasses
import json
import math
import pathlib
from typing import Any

from mirg_jax.errors import CheckpointError
from mirg_jax.models import unsupported
from mirg_jax.models.json_fields import end_tokens, flag, number, section, size, sizes, token_ids


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Configuration of the vision tower.

    Attributes:
      depth: number of transformer blocks.
      embed_dim: width of the blocks.
      num_heads: attention heads per block.
      mlp_ratio: width of Qwen2-VL's MLP over `embed_dim`.
      out_dim: width of the visual tokens, the decoder's `hidden_size`.
      patch_size: pixels along a patch's side.
      merge_size: patches along the side of a block that becomes one visual token.
      temporal_patch_size: frames per patch.
      window_size: pixels along a window's side; all blocks except `full_blocks` attend within
        windows. It selects Qwen2.5-VL's tower, which has other norms and MLPs; 0: no windows.
      full_blocks: indices of the blocks that attend to the whole image; only with windows.
      mlp_dim: width of the MLP of Qwen2.5-VL and Qwen3-VL.
      position_side: rows and columns of the grid of learned position embeddings. It selects
        Qwen3-VL's tower, which has a bias on patches and another activation; 0: no such grid.
      deepstack: indices of the blocks whose features are added after the first decoder layers.
    """

    depth: int = 32
    embed_dim: int = 1280
    num_heads: int = 16
    mlp_ratio: int = 4
    out_dim: int = 3584
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    window_size: int = 0
    full_blocks: tuple[int, ...] = ()
    mlp_dim: int = 0
    position_side: int = 0
    deepstack: tuple[int, ...] = ()

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.embed_dim // self.num_heads

    @property
    def mlp_width(self) -> int:
        """Width inside the blocks' MLP."""
        return self.mlp_dim or self.mlp_ratio * self.embed_dim

    @property
    def token_dim(self) -> int:
        """Width of what the tower returns for a visual token, with DeepStack's features."""
        return self.out_dim * (1 + len(self.deepstack))

    @property
    def window(self) -> int:
        """Patches along a window's side, rounded down to whole visual tokens; 0: no windows."""
        unit = self.patch_size * self.merge_size
        return self.window_size // unit * self.merge_size


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Configuration of the decoder.

    Attributes:
      head_size: width of an attention head; 0: `hidden_size` over `num_heads`.
      mrope_section: frequencies of the time, height and width positions.
      mrope_interleaved: whether they take turns, or each has a run of frequencies.
      qkv_bias: whether the projections of queries, keys and values have a bias.
      qk_norm: whether queries and keys are normalised, each head by itself.
    """

    vocab_size: int = 152064
    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_layers: int = 28
    num_heads: int = 28
    num_kv_heads: int = 4
    rope_theta: float = 1e6
    mrope_section: tuple[int, int, int] = (16, 24, 24)
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    head_size: int = 0
    mrope_interleaved: bool = False
    qkv_bias: bool = True
    qk_norm: bool = False

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.head_size or self.hidden_size // self.num_heads


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Configuration of a whole model, with the IDs of its special tokens.

    Attributes:
      eos_token_id: as in config.json, which may have a list.
      end_tokens: all IDs that end an answer by the model's files. Neither makes it another model,
        since runs of earlier versions don't record them.

    Raises:
      ValueError: if the sizes are inconsistent.
    """

    text: TextConfig = TextConfig()
    vision: VisionConfig = VisionConfig()
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    bos_token_id: int = 151643
    eos_token_id: int | tuple[int, ...] = dataclasses.field(default=151645, compare=False)
    end_tokens: tuple[int, ...] = dataclasses.field(default=(), compare=False)

    def __post_init__(self):
        text, vision = self.text, self.vision
        heads, kv_heads, sections = text.num_heads, text.num_kv_heads, text.mrope_section
        for ok, rule, values in (
            (
                text.head_size or text.hidden_size % heads == 0,
                "hidden_size must be a multiple of num_attention_heads",
                (text.hidden_size, heads),
            ),
            (
                heads % kv_heads == 0,
                "num_attention_heads must be a multiple of num_key_value_heads",
                (heads, kv_heads),
            ),
            (
                2 * sum(sections) == text.head_dim,
                "mrope_section must add up to half the head size",
                (list(sections), text.head_dim),
            ),
            (
                not text.mrope_interleaved or 3 * max(sections[1:]) <= sum(sections),
                "in an interleaved mrope_section, height and width must be a third at most",
                (list(sections),),
            ),
            (
                vision.embed_dim % vision.num_heads == 0,
                "the vision tower's width must be a multiple of its num_heads",
                (vision.embed_dim, vision.num_heads),
            ),
            (
                vision.head_dim % 4 == 0,
                "the vision head size must be a multiple of 4",
                (vision.embed_dim, vision.num_heads),
            ),
            (
                vision.out_dim == text.hidden_size,
                "the vision tower's out_dim must be the decoder's width",
                (vision.out_dim, text.hidden_size),
            ),
            (
                bool(vision.window_size) == bool(vision.window),
                "window_size must be 0 or large enough to hold a visual token",
                (vision.window_size,),
            ),
            (
                not (vision.window_size and (vision.position_side or vision.deepstack)),
                "a tower with windows has no learned positions and no deepstack",
                (vision.window_size, vision.position_side, list(vision.deepstack)),
            ),
            (
                list(vision.deepstack) == sorted({*vision.deepstack})
                and all(index < vision.depth for index in vision.deepstack)
                and len(vision.deepstack) <= text.num_layers,
                "deepstack_visual_indexes must be blocks in ascending order, no more than layers",
                (list(vision.deepstack), vision.depth, text.num_layers),
            ),
        ):
            if not ok:
                raise ValueError(f"{rule} ({', '.join(map(str, values))})")

    @property
    def model_type(self) -> str:
        """The model family's name in a `config.json`."""
        if self.vision.position_side:
            return "qwen3_vl"
        return "qwen2_5_vl" if self.vision.window_size else "qwen2_vl"

    @classmethod
    def from_hf(cls, raw: Any) -> "ModelConfig":
        """Creates a configuration from the contents of a `config.json`.

        Args:
          raw: the parsed JSON, in the flat form of the published models or in the newer form
            with `text_config`.

        Raises:
          ValueError: if a field is of another type or out of range, or the sizes are inconsistent;
            a `CheckpointError`, if the model type is another, or a field asks for another
            computation (see `unsupported.check`).
          KeyError: if a field is missing.
        """
        if not isinstance(raw, dict):
            raise ValueError("no JSON object")
        kind = raw.get("model_type")
        if not isinstance(kind, str) or kind not in ARCHITECTURES:
            raise CheckpointError(
                f"model_type {kind!r} is not {' or '.join(ARCHITECTURES)}; give a checkpoint of "
                "Qwen2-VL, Qwen2.5-VL or Qwen3-VL, with a vision tower and without experts"
            )
        text = section(raw, "text_config") or raw
        rope = section(text, "rope_parameters") or section(text, "rope_scaling")
        if not section(raw, "vision_config"):
            raise KeyError("vision_config")
        heads = size(text, "num_attention_heads")
        own = _DECODERS.get(kind, TextConfig())
        sections = sizes(rope, "mrope_section", own.mrope_section)
        if len(sections) != 3:
            raise ValueError(f"mrope_section={list(sections)} is not a list of three sizes")
        decoder = TextConfig(
            vocab_size=size(text, "vocab_size"),
            hidden_size=size(text, "hidden_size"),
            intermediate_size=size(text, "intermediate_size"),
            num_layers=size(text, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=size(text, "num_key_value_heads", heads),
            rope_theta=number(rope, "rope_theta", number(text, "rope_theta", own.rope_theta)),
            mrope_section=sections,
            rms_norm_eps=number(text, "rms_norm_eps", most=1),
            # In the newer form it may be at either level.
            tie_word_embeddings=any([flag(c, "tie_word_embeddings") for c in (raw, text)]),
            head_size=size(text, "head_dim", own.head_size) if own.head_size else 0,
            mrope_interleaved=own.mrope_interleaved,
            qkv_bias=own.qkv_bias,
            qk_norm=own.qk_norm,
        )
        try:
            vision = _vision_from_hf(raw["vision_config"], kind)
        except KeyError as error:
            raise KeyError(f"vision_config.{error.args[0]}") from None
        except ValueError as error:
            raise ValueError(f"vision_config.{error}") from None
        unsupported.check(raw)
        ids = {
            name: found
            for part, names in ((raw, _IMAGE_IDS + _TEXT_IDS), (text, _TEXT_IDS))
            for name in names
            if (found := token_ids(part, name, decoder.vocab_size))
        }
        for name, found in ids.items():
            if len(found) > 1 and name != "eos_token_id":
                raise ValueError(f"{name}={list(found)} is not one token's ID")
        values = {name: found if found[1:] else found[0] for name, found in ids.items()}
        return cls(decoder, vision, **values, end_tokens=ids.get("eos_token_id", ()))

    @classmethod
    def from_folder(cls, folder: str | pathlib.Path) -> "ModelConfig":
        """Reads `folder/config.json`, and the end tokens in generation_config.json beside it.

        Raises:
          CheckpointError: if a file is damaged, the former is missing, or it describes an
            unsupported model.
        """
        folder = pathlib.Path(folder)
        path = folder / "config.json"
        try:
            config = cls.from_hf(json.loads(path.read_text(encoding="utf-8")))
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
        except KeyError as error:
            problem = f"lacks the field {error}"
        except OSError as error:
            problem = error.strerror
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            problem = str(error)
        else:
            ends = (*config.end_tokens, *end_tokens(folder, config.text.vocab_size))
            return dataclasses.replace(config, end_tokens=tuple(dict.fromkeys(ends)))
        raise CheckpointError(
            f"{path}: {problem}; correct it, or give a Qwen2-VL, Qwen2.5-VL or Qwen3-VL checkpoint"
        )

    def to_hf(self) -> dict[str, Any]:
        """Returns the contents of a `config.json` in the form that the family is published in."""
        text, ends = self.text, self.eos_token_id
        decoder = {
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "num_key_value_heads": text.num_kv_heads,
            "hidden_act": "silu",
            "rope_theta": text.rope_theta,
            "rope_scaling": {"type": "mrope", "mrope_section": list(text.mrope_section)},
            "rms_norm_eps": text.rms_norm_eps,
            "tie_word_embeddings": text.tie_word_embeddings,
            "use_sliding_window": False,
        }
        texts = {
            "bos_token_id": self.bos_token_id,
            "eos_token_id": ends if isinstance(ends, int) else list(ends),
        }
        if self.model_type == "qwen3_vl":
            del decoder["use_sliding_window"]
            decoder["model_type"] = "qwen3_vl_text"
            decoder["head_dim"], decoder["attention_bias"] = text.head_dim, False
            decoder["rope_scaling"] = {
                "rope_type": "default",
                "mrope_section": list(text.mrope_section),
                "mrope_interleaved": True,
            }
            decoder = {
                "text_config": decoder | texts,
                "tie_word_embeddings": text.tie_word_embeddings,
            }
            texts = {}
        return {
            "architectures": [ARCHITECTURES[self.model_type]],
            "model_type": self.model_type,
            **decoder,
            "vision_config": _vision_to_hf(self.vision, self.model_type),
            "image_token_id": self.image_token_id,
            "video_token_id": self.video_token_id,
            "vision_start_token_id": self.vision_start_token_id,
            "vision_end_token_id": self.vision_end_token_id,
            **texts,
        }


def _vision_from_hf(raw: dict[str, Any], model_type: str) -> VisionConfig:
    common = {
        "depth": size(raw, "depth"),
        "num_heads": size(raw, "num_heads"),
        "patch_size": size(raw, "patch_size", unsupported.VISION[model_type]["patch_size"]),
        "merge_size": size(raw, "spatial_merge_size", 2),
        "temporal_patch_size": size(raw, "temporal_patch_size", 2),
    }
    if model_type == "qwen2_vl":
        own = {
            "embed_dim": size(raw, "embed_dim"),
            "mlp_ratio": size(raw, "mlp_ratio", 4),
            "out_dim": size(raw, "hidden_size"),
        }
    elif model_type == "qwen3_vl":
        positions = size(raw, "num_position_embeddings", 2304)
        if math.isqrt(positions) ** 2 != positions:
            raise ValueError(f"num_position_embeddings={positions} is not the square of an integer")
        own = {
            "embed_dim": size(raw, "hidden_size"),
            "mlp_dim": size(raw, "intermediate_size"),
            "out_dim": size(raw, "out_hidden_size"),
            "position_side": math.isqrt(positions),
            "deepstack": sizes(raw, "deepstack_visual_indexes", (8, 16, 24)),
        }
    else:
        own = {
            "embed_dim": size(raw, "hidden_size"),
            "mlp_dim": size(raw, "intermediate_size"),
            "out_dim": size(raw, "out_hidden_size"),
            "window_size": size(raw, "window_size", 112),
            "full_blocks": sizes(raw, "fullatt_block_indexes", (7, 15, 23, 31)),
        }
    return VisionConfig(**common, **own)


def _vision_to_hf(vision: VisionConfig, model_type: str) -> dict[str, Any]:
    common = {
        "model_type": model_type,
        "depth": vision.depth,
        "num_heads": vision.num_heads,
        "in_chans": 3,
        "patch_size": vision.patch_size,
        "spatial_merge_size": vision.merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
    if model_type == "qwen2_vl":
        return common | {
            "embed_dim": vision.embed_dim,
            "mlp_ratio": vision.mlp_ratio,
            "hidden_size": vision.out_dim,
            "hidden_act": "quick_gelu",
        }
    common |= {
        "hidden_size": vision.embed_dim,
        "intermediate_size": vision.mlp_dim,
        "out_hidden_size": vision.out_dim,
    }
    if model_type == "qwen3_vl":
        common["in_channels"] = common.pop("in_chans")
        return common | {
            "hidden_act": "gelu_pytorch_tanh",
            "num_position_embeddings": vision.position_side**2,
            "deepstack_visual_indexes": list(vision.deepstack),
        }
    return common | {
        "hidden_act": "silu",
        "window_size": vision.window_size,
        "fullatt_block_indexes": list(vision.full_blocks),
    }


_IMAGE_IDS = tuple(f"{n}_token_id" for n in ("image", "video", "vision_start", "vision_end"))
_TEXT_IDS = ("bos_token_id", "eos_token_id")

# transformers' class names, by model_type.
ARCHITECTURES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}

# Qwen3-VL's decoder: its flags, and transformers' values of fields that config.json may lack.
QWEN3_TEXT = TextConfig(
    head_size=128,
    rope_theta=5e5,
    mrope_section=(24, 20, 20),
    mrope_interleaved=True,
    qkv_bias=False,
    qk_norm=True,
)
_DECODERS = {"qwen3_vl": QWEN3_TEXT}
