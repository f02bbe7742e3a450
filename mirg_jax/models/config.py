"""Model configurations of Qwen2-VL and Qwen2.5-VL, converted from and to `config.json`."""

import dataclasses
import json
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
        windows. 0 selects Qwen2-VL's tower, which has no windows and different norms and MLPs.
      full_blocks: indices of the blocks that attend to the whole image; only with windows.
      mlp_dim: width of Qwen2.5-VL's MLP; only with windows.
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

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.embed_dim // self.num_heads

    @property
    def window(self) -> int:
        """Patches along a window's side, rounded down to whole visual tokens; 0: no windows."""
        unit = self.patch_size * self.merge_size
        return self.window_size // unit * self.merge_size


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Configuration of the decoder."""

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

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_heads


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
                text.hidden_size % heads == 0,
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
        ):
            if not ok:
                raise ValueError(f"{rule} ({', '.join(map(str, values))})")

    @property
    def model_type(self) -> str:
        """The model family's name in a `config.json`."""
        return "qwen2_5_vl" if self.vision.window_size else "qwen2_vl"

    @classmethod
    def from_hf(cls, raw: Any) -> "ModelConfig":
        """Creates a configuration from the contents of a `config.json`.

        Args:
          raw: the parsed JSON, in the flat form of the published models or in the newer form
            with `text_config`.

        Raises:
          ValueError: if the model type is another, a field is of another type or out of range, the
            sizes are inconsistent, or a field asks for another computation (a `CheckpointError`
            then; see `unsupported.check`).
          KeyError: if a field is missing.
        """
        if not isinstance(raw, dict):
            raise ValueError("no JSON object")
        kind = raw.get("model_type")
        if not isinstance(kind, str) or kind not in ARCHITECTURES:
            raise ValueError(f"model_type {kind!r} is not {' or '.join(ARCHITECTURES)}")
        text = section(raw, "text_config") or raw
        rope = section(text, "rope_parameters") or section(text, "rope_scaling")
        if not section(raw, "vision_config"):
            raise KeyError("vision_config")
        heads = size(text, "num_attention_heads")
        sections = sizes(rope, "mrope_section", (16, 24, 24))
        if len(sections) != 3:
            raise ValueError(f"mrope_section={list(sections)} is not a list of three sizes")
        decoder = TextConfig(
            vocab_size=size(text, "vocab_size"),
            hidden_size=size(text, "hidden_size"),
            intermediate_size=size(text, "intermediate_size"),
            num_layers=size(text, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=size(text, "num_key_value_heads", heads),
            rope_theta=number(rope, "rope_theta", number(text, "rope_theta", 1e6)),
            mrope_section=sections,
            rms_norm_eps=number(text, "rms_norm_eps", most=1),
            # In the newer form it may be at either level.
            tie_word_embeddings=any([flag(c, "tie_word_embeddings") for c in (raw, text)]),
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
            f"{path}: {problem}; correct it, or give a Qwen2-VL or Qwen2.5-VL checkpoint"
        )

    def to_hf(self) -> dict[str, Any]:
        """Returns the contents of a `config.json` in the published flat form."""
        text, vision, ends = self.text, self.vision, self.eos_token_id
        return {
            "architectures": [ARCHITECTURES[self.model_type]],
            "model_type": self.model_type,
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
            "vision_config": _vision_to_hf(vision, self.model_type),
            "image_token_id": self.image_token_id,
            "video_token_id": self.video_token_id,
            "vision_start_token_id": self.vision_start_token_id,
            "vision_end_token_id": self.vision_end_token_id,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": ends if isinstance(ends, int) else list(ends),
        }


def _vision_from_hf(raw: dict[str, Any], model_type: str) -> VisionConfig:
    common = {
        "depth": size(raw, "depth"),
        "num_heads": size(raw, "num_heads"),
        "patch_size": size(raw, "patch_size", 14),
        "merge_size": size(raw, "spatial_merge_size", 2),
        "temporal_patch_size": size(raw, "temporal_patch_size", 2),
    }
    if model_type == "qwen2_vl":
        own = {
            "embed_dim": size(raw, "embed_dim"),
            "mlp_ratio": size(raw, "mlp_ratio", 4),
            "out_dim": size(raw, "hidden_size"),
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
    return common | {
        "hidden_size": vision.embed_dim,
        "intermediate_size": vision.mlp_dim,
        "out_hidden_size": vision.out_dim,
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
}

# Configurations of the published instruct models, as in their config.json.
QWEN2_VL_2B = ModelConfig(
    text=TextConfig(
        vocab_size=151936,
        hidden_size=1536,
        intermediate_size=8960,
        num_heads=12,
        num_kv_heads=2,
        tie_word_embeddings=True,
    ),
    vision=VisionConfig(out_dim=1536),
)
QWEN2_VL_7B = ModelConfig()
QWEN2_VL_72B = ModelConfig(
    text=TextConfig(
        hidden_size=8192, intermediate_size=29568, num_layers=80, num_heads=64, num_kv_heads=8
    ),
    vision=VisionConfig(out_dim=8192),
)
_WINDOWED = VisionConfig(window_size=112, full_blocks=(7, 15, 23, 31), mlp_dim=3420)
QWEN2_5_VL_3B = ModelConfig(
    text=TextConfig(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=11008,
        num_layers=36,
        num_heads=16,
        num_kv_heads=2,
        tie_word_embeddings=True,
    ),
    vision=dataclasses.replace(_WINDOWED, out_dim=2048),
)
QWEN2_5_VL_7B = ModelConfig(vision=_WINDOWED)
PUBLISHED = {
    "Qwen/Qwen2-VL-2B-Instruct": QWEN2_VL_2B,
    "Qwen/Qwen2-VL-7B-Instruct": QWEN2_VL_7B,
    "Qwen/Qwen2-VL-72B-Instruct": QWEN2_VL_72B,
    "Qwen/Qwen2.5-VL-3B-Instruct": QWEN2_5_VL_3B,
    "Qwen/Qwen2.5-VL-7B-Instruct": QWEN2_5_VL_7B,
}
