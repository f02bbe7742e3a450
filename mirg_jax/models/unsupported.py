"""Fields of a `config.json` that ask for another computation than the one in this package."""

from collections.abc import Mapping
from typing import Any

from mirg_jax.errors import CheckpointError
from mirg_jax.models.json_fields import texts

# The only value that each field may have, where it is given; `config.py` reads the patch sizes. The
# size of blocks that are merged is also that of `data/images.py`.
_TEXT = {"hidden_act": "silu", "use_sliding_window": False, "partial_rotary_factor": 1}
_TEXT_OF = {"qwen3_vl": {"attention_bias": False}}
VISION = {
    "qwen2_vl": {"hidden_act": "quick_gelu", "patch_size": 14},
    "qwen2_5_vl": {"hidden_act": "silu", "patch_size": 14},
    "qwen3_vl": {"hidden_act": "gelu_pytorch_tanh", "patch_size": 16},
}
_PATCHES = {"spatial_merge_size": 2, "in_chans": 3, "in_channels": 3}
_TOWER_ROPE = {"rope_type": "axial", "rope_theta": 10000}
_ROPE_TYPES = ("mrope", "default")


def check(raw: Mapping[str, Any]) -> None:
    """Checks that nothing in a `config.json` would have to be computed otherwise.

    Args:
      raw: the parsed JSON, with a `model_type` that is supported, and sizes that are integers.

    Raises:
      CheckpointError: if a field has another value than the one that is computed here; the message
        names the field and the remedy.
      ValueError: if a field is of another type.
    """
    text, vision, kind = raw.get("text_config") or raw, raw["vision_config"], raw["model_type"]
    for part in (raw, text):
        _check_quantization(part)
        _check_rope(part, interleaved=kind == "qwen3_vl")
        _check_values(part, _TEXT | _TEXT_OF.get(kind, {}), "")
    _check_values(vision, VISION[kind] | _PATCHES, "vision_config.")
    if isinstance(rope := vision.get("rope_parameters"), dict):
        _check_values(rope, _TOWER_ROPE, "vision_config.rope_parameters.")
    if others := set(texts(text, "layer_types")) - {"full_attention"}:
        raise _unsupported("layer_types", min(others), "full_attention")
    width = text["hidden_size"] // text["num_attention_heads"]
    if kind != "qwen3_vl" and text.get("head_dim") not in (None, width):
        raise _unsupported("head_dim", text["head_dim"], width)


def _check_values(part: Mapping[str, Any], allowed: Mapping[str, Any], where: str) -> None:
    for name, value in allowed.items():
        if part.get(name) not in (None, value):
            raise _unsupported(where + name, part[name], value)


def _check_quantization(part: Mapping[str, Any]) -> None:
    for name in ("quantization_config", "compression_config"):
        if found := part.get(name):
            method = found.get("quant_method") if isinstance(found, dict) else None
            raise CheckpointError(
                f"{name}: the weights are quantised ({method or 'method not named'}), which can't "
                "be read; give the checkpoint in bfloat16 or float32 that they were made from"
            )


def _check_rope(part: Mapping[str, Any], *, interleaved: bool) -> None:
    for name in ("rope_scaling", "rope_parameters"):
        found = part.get(name)
        if not isinstance(found, dict):
            continue
        for rope in (found, *(each for each in found.values() if isinstance(each, dict))):
            for kind in (rope.get("rope_type"), rope.get("type")):
                if kind not in (None, *_ROPE_TYPES):
                    raise CheckpointError(
                        f"{name} of type {kind!r} is not supported, and without it positions are "
                        "encoded otherwise; for prompts within the length that the model was "
                        'trained on, set its type to "mrope" and remove its other fields but '
                        "mrope_section and rope_theta"
                    )
            only = {"mrope_interleaved": interleaved, "partial_rotary_factor": 1}
            _check_values(rope, only, f"{name}.")


def _unsupported(name: str, value: Any, supported: Any) -> CheckpointError:
    return CheckpointError(
        f"{name}={value!r} is not supported, only {supported!r}; give a checkpoint that has it"
    )
