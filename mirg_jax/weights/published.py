"""The published name and layout of every parameter: one table for reading and writing.

Checkpoints of Qwen2-VL and Qwen2.5-VL name tensors `visual.*`, `model.*` and `lm_head.weight`, and
so does the table; newer versions of transformers, and Qwen3-VL's checkpoints, have `model.visual.*`
and `model.language_model.*`.
"""

from typing import NamedTuple

from mirg_jax.models.config import ModelConfig, VisionConfig

Shape = tuple[int, ...]


class Entry(NamedTuple):
    """One parameter: its path here, its published name, and how their layouts differ."""

    path: str  # dotted path of our parameter
    name: str  # published name; `{}` stands for the layer number of a stacked parameter
    # "same"; "linear": published as [out, in], ours is [in, out]; "conv": like "linear", but the
    # input axes are published separately.
    kind: str

    @property
    def is_stacked(self) -> bool:
        """Whether our parameter has all layers on its first axis, each published by itself."""
        return "{}" in self.name

    def names(self, shape: Shape) -> list[str]:
        """Returns the published names of our parameter of a shape, one for each layer."""
        return [self.name.format(i) for i in range(shape[0])] if self.is_stacked else [self.name]

    def published_shape(self, shape: Shape, config: ModelConfig) -> Shape:
        """Returns the shape that a tensor of our parameter of a shape is published in."""
        if self.is_stacked:
            shape = shape[1:]
        if self.kind == "conv":
            patch = config.vision.patch_size
            return (shape[1], 3, config.vision.temporal_patch_size, patch, patch)
        return shape[::-1] if self.kind == "linear" else shape


def _linear(path: str, name: str, *, bias: bool) -> list[Entry]:
    entries = [Entry(f"{path}.kernel", f"{name}.weight", "linear")]
    return entries + ([Entry(f"{path}.bias", f"{name}.bias", "same")] if bias else [])


def _norm(path: str, name: str, *, bias: bool) -> list[Entry]:
    entries = [Entry(f"{path}.scale", f"{name}.weight", "same")]
    return entries + ([Entry(f"{path}.bias", f"{name}.bias", "same")] if bias else [])


def _tower(config: VisionConfig) -> list[Entry]:
    tower, block = "visual.blocks", "visual.blocks.{}"
    windows = bool(config.window_size)  # Qwen2.5-VL's tower: different norms and MLPs
    learned = bool(config.position_side)  # Qwen3-VL's
    mlp = ("gate_proj", "up_proj", "down_proj") if windows else ("fc1", "fc2")
    entries = [
        Entry("visual.patch_embed.kernel", "visual.patch_embed.proj.weight", "conv"),
        *_norm(f"{tower}.norm1", f"{block}.norm1", bias=not windows),
        *_linear(f"{tower}.qkv", f"{block}.attn.qkv", bias=True),
        *_linear(f"{tower}.proj", f"{block}.attn.proj", bias=True),
        *_norm(f"{tower}.norm2", f"{block}.norm2", bias=not windows),
    ]
    for name in mlp:
        theirs = f"linear_{name}" if learned else name
        entries += _linear(f"{tower}.{name}", f"{block}.mlp.{theirs}", bias=True)
    mergers = {"merger": "merger"}
    if learned:
        entries.append(Entry("visual.patch_embed.bias", "visual.patch_embed.proj.bias", "same"))
        entries.append(Entry("visual.position_embed.embedding", "visual.pos_embed.weight", "same"))
    if config.deepstack:
        mergers["deep_mergers"] = "deepstack_merger_list.{}"
    names = ("norm", "linear_fc1", "linear_fc2") if learned else ("ln_q", "mlp.0", "mlp.2")
    for ours, theirs in mergers.items():
        norm, first, second = (f"visual.{theirs}.{name}" for name in names)
        entries += [
            *_norm(f"visual.{ours}.norm", norm, bias=not windows),
            *_linear(f"visual.{ours}.fc1", first, bias=True),
            *_linear(f"visual.{ours}.fc2", second, bias=True),
        ]
    return entries


def table(config: ModelConfig) -> list[Entry]:
    """Returns an entry for every parameter of the model."""
    text = config.text
    layers, layer = "decoder.layers", "model.layers.{}"
    of_heads = [
        entry
        for name in ("q_proj", "k_proj", "v_proj")
        for entry in _linear(
            f"{layers}.attention.{name}", f"{layer}.self_attn.{name}", bias=text.qkv_bias
        )
    ]
    for name in ("q_norm", "k_norm") if text.qk_norm else ():
        of_heads += _norm(f"{layers}.attention.{name}", f"{layer}.self_attn.{name}", bias=False)
    entries = [
        *_tower(config.vision),
        Entry("embed_tokens.embedding", "model.embed_tokens.weight", "same"),
        *_norm(f"{layers}.input_norm", f"{layer}.input_layernorm", bias=False),
        *of_heads,
        *_linear(f"{layers}.attention.o_proj", f"{layer}.self_attn.o_proj", bias=False),
        *_norm(f"{layers}.post_norm", f"{layer}.post_attention_layernorm", bias=False),
        *_linear(f"{layers}.gate_proj", f"{layer}.mlp.gate_proj", bias=False),
        *_linear(f"{layers}.up_proj", f"{layer}.mlp.up_proj", bias=False),
        *_linear(f"{layers}.down_proj", f"{layer}.mlp.down_proj", bias=False),
        *_norm("decoder.norm", "model.norm", bias=False),
    ]
    if not text.tie_word_embeddings:
        entries += _linear("lm_head", "lm_head", bias=False)
    return entries


def published_name(name: str) -> str:
    """Converts a tensor's name from newer transformers to that of the table."""
    for new, old in (("model.visual.", "visual."), ("model.language_model.", "model.")):
        if name.startswith(new):
            return old + name[len(new) :]
    return name


def newer_name(name: str) -> str:
    """Converts a tensor's name in the table to that of newer transformers."""
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1)


def written_name(name: str, config: ModelConfig) -> str:
    """Converts a tensor's name in the table to that in published checkpoints of the family."""
    return newer_name(name) if config.model_type == "qwen3_vl" else name
