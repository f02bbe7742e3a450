"""Model configurations of Qwen2-VL and Qwen2.5-VL, converted from and to `config.json`."""

import dataclasses
import json
import pathlib
from typing import Any

from mirg_jax.errors import CheckpointError
from mirg_jax.models import unsupported


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
    eos_token_id: int = 151645

    def __post_init__(self):
        text, vision = self.text, self.vision
        for name, ok in {
            "hidden_size must be a multiple of num_attention_heads": text.hidden_size
            % text.num_heads
            == 0,
            "num_attention_heads must be a multiple of num_key_value_heads": text.num_heads
            % text.num_kv_heads
            == 0,
            "mrope_section must add up to half the head size": 2 * sum(text.mrope_section)
            == text.head_dim,
            "the vision head size must be a multiple of 4": vision.head_dim % 4 == 0,
            "the vision tower's out_dim must be the decoder's width": vision.out_dim
            == text.hidden_size,
            "window_size must be 0 or large enough to hold a visual token": bool(vision.window_size)
            == bool(vision.window),
        }.items():
            if not ok:
                raise ValueError(name)

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
          ValueError: if the model type is another, the sizes are inconsistent, or a field asks for
            another computation (a `CheckpointError` then; see `unsupported.check`).
          KeyError: if a field is missing.
        """
        if raw.get("model_type") not in ARCHITECTURES:
            names = " or ".join(ARCHITECTURES)
            raise ValueError(f"model_type {raw.get('model_type')!r} is not {names}")
        unsupported.check(raw)
        text = raw.get("text_config") or raw
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        vision = raw["vision_config"]
        ids = ("image", "video", "vision_start", "vision_end")
        return cls(
            text=TextConfig(
                vocab_size=text["vocab_size"],
                hidden_size=text["hidden_size"],
                intermediate_size=text["intermediate_size"],
                num_layers=text["num_hidden_layers"],
                num_heads=text["num_attention_heads"],
                num_kv_heads=text.get("num_key_value_heads") or text["num_attention_heads"],
                rope_theta=float(rope.get("rope_theta") or text.get("rope_theta") or 1e6),
                mrope_section=tuple(rope.get("mrope_section") or (16, 24, 24)),
                rms_norm_eps=text["rms_norm_eps"],
                # In the newer form it may be at either level.
                tie_word_embeddings=any(c.get("tie_word_embeddings") for c in (raw, text)),
            ),
            vision=_vision_from_hf(vision, raw["model_type"]),
            **{f"{n}_token_id": raw[f"{n}_token_id"] for n in ids if f"{n}_token_id" in raw},
            **{
                k: text[k] for k in ("bos_token_id", "eos_token_id") if isinstance(text.get(k), int)
            },
        )

    @classmethod
    def from_folder(cls, folder: str | pathlib.Path) -> "ModelConfig":
        """Reads `folder/config.json`.

        Raises:
          CheckpointError: if the file is missing, damaged, or describes an unsupported model.
        """
        path = pathlib.Path(folder) / "config.json"
        try:
            return cls.from_hf(json.loads(path.read_text()))
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
        except KeyError as error:
            problem = f"lacks the field {error}"
        except OSError as error:
            problem = error.strerror
        except (ValueError, TypeError, AttributeError) as error:
            problem = str(error)
        raise CheckpointError(f"{path}: {problem}; give a Qwen2-VL or Qwen2.5-VL checkpoint")

    def to_hf(self) -> dict[str, Any]:
        """Returns the contents of a `config.json` in the published flat form."""
        text, vision = self.text, self.vision
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
            "eos_token_id": self.eos_token_id,
        }


def _vision_from_hf(raw: dict[str, Any], model_type: str) -> VisionConfig:
    common = {
        "depth": raw["depth"],
        "num_heads": raw["num_heads"],
        "patch_size": raw.get("patch_size", 14),
        "merge_size": raw.get("spatial_merge_size", 2),
        "temporal_patch_size": raw.get("temporal_patch_size", 2),
    }
    if model_type == "qwen2_vl":
        own = {
            "embed_dim": raw["embed_dim"],
            "mlp_ratio": raw.get("mlp_ratio", 4),
            "out_dim": raw["hidden_size"],
        }
    else:
        own = {
            "embed_dim": raw["hidden_size"],
            "mlp_dim": raw["intermediate_size"],
            "out_dim": raw["out_hidden_size"],
            "window_size": raw.get("window_size", 112),
            "full_blocks": tuple(raw.get("fullatt_block_indexes", (7, 15, 23, 31))),
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
