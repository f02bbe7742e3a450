"""Model sizes, read from and written to Hugging Face `config.json`."""

import dataclasses
import json
import pathlib
from typing import Any, Self

from mirg_jax.errors import CheckpointError


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower: `depth` blocks of width `embed_dim`, merged 2×2 into `out_dim`."""

    depth: int = 32
    embed_dim: int = 1280
    num_heads: int = 16
    mlp_ratio: int = 4
    out_dim: int = 3584
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The decoder."""

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
        return self.hidden_size // self.num_heads


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A whole model with the ids of the tokens it treats specially."""

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
            "the vision tower must end at the decoder's width": vision.out_dim == text.hidden_size,
        }.items():
            if not ok:
                raise ValueError(name)

    @classmethod
    def from_hf(cls, raw: dict[str, Any]) -> Self:
        """Reads a `config.json`: the published flat form or the newer one with `text_config`.

        Raises:
          ValueError: for another model type, sizes that don't fit together, or a feature this
            model lacks (sliding windows).
          KeyError: for a field that isn't there.
        """
        if raw.get("model_type") != "qwen2_vl":
            raise ValueError(f"model_type {raw.get('model_type')!r} is not qwen2_vl")
        text = raw.get("text_config") or raw
        if text.get("use_sliding_window"):
            raise ValueError("use_sliding_window is not supported")
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
                # The newer form may say it at either level.
                tie_word_embeddings=any(c.get("tie_word_embeddings") for c in (raw, text)),
            ),
            vision=VisionConfig(
                depth=vision["depth"],
                embed_dim=vision["embed_dim"],
                num_heads=vision["num_heads"],
                mlp_ratio=vision.get("mlp_ratio", 4),
                out_dim=vision["hidden_size"],
                patch_size=vision.get("patch_size", 14),
                merge_size=vision.get("spatial_merge_size", 2),
                temporal_patch_size=vision.get("temporal_patch_size", 2),
            ),
            **{f"{n}_token_id": raw[f"{n}_token_id"] for n in ids if f"{n}_token_id" in raw},
            **{
                k: text[k] for k in ("bos_token_id", "eos_token_id") if isinstance(text.get(k), int)
            },
        )

    @classmethod
    def from_folder(cls, folder: str | pathlib.Path) -> Self:
        """Reads `folder/config.json`.

        Raises:
          CheckpointError: if it is missing, damaged, or of a model that this one can't be.
        """
        path = pathlib.Path(folder) / "config.json"
        try:
            return cls.from_hf(json.loads(path.read_text()))
        except KeyError as error:
            problem = f"lacks the field {error}"
        except OSError as error:
            problem = error.strerror
        except (ValueError, TypeError, AttributeError) as error:
            problem = str(error)
        raise CheckpointError(f"{path}: {problem}; give a Qwen2-VL checkpoint")

    def to_hf(self) -> dict[str, Any]:
        """The published flat form, which transformers reads."""
        text, vision = self.text, self.vision
        return {
            "architectures": ["Qwen2VLForConditionalGeneration"],
            "model_type": "qwen2_vl",
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
            "vision_config": {
                "model_type": "qwen2_vl",
                "depth": vision.depth,
                "embed_dim": vision.embed_dim,
                "num_heads": vision.num_heads,
                "mlp_ratio": vision.mlp_ratio,
                "hidden_size": vision.out_dim,
                "hidden_act": "quick_gelu",
                "in_chans": 3,
                "patch_size": vision.patch_size,
                "spatial_merge_size": vision.merge_size,
                "temporal_patch_size": vision.temporal_patch_size,
            },
            "image_token_id": self.image_token_id,
            "video_token_id": self.video_token_id,
            "vision_start_token_id": self.vision_start_token_id,
            "vision_end_token_id": self.vision_end_token_id,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
        }


# Published sizes (config.json of the Qwen2-VL instruct models).
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
PUBLISHED = {
    "Qwen/Qwen2-VL-2B-Instruct": QWEN2_VL_2B,
    "Qwen/Qwen2-VL-7B-Instruct": QWEN2_VL_7B,
    "Qwen/Qwen2-VL-72B-Instruct": QWEN2_VL_72B,
}
