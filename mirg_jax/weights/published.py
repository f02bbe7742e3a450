"""The published name and layout of every parameter: one table for reading and writing.

Published checkpoints name tensors `visual.*`, `model.*` and `lm_head.weight`; newer versions of
transformers use `model.visual.*` and `model.language_model.*`.
"""

from typing import NamedTuple

from mirg_jax.models.config import ModelConfig

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


def table(config: ModelConfig) -> list[Entry]:
    """Returns an entry for every parameter of the model."""
    tower, block = "visual.blocks", "visual.blocks.{}"
    windows = bool(config.vision.window_size)  # Qwen2.5-VL's tower: different norms and MLPs
    mlp = ("gate_proj", "up_proj", "down_proj") if windows else ("fc1", "fc2")
    layers, layer = "decoder.layers", "model.layers.{}"
    entries = [
        Entry("visual.patch_embed.kernel", "visual.patch_embed.proj.weight", "conv"),
        *_norm(f"{tower}.norm1", f"{block}.norm1", bias=not windows),
        *_linear(f"{tower}.qkv", f"{block}.attn.qkv", bias=True),
        *_linear(f"{tower}.proj", f"{block}.attn.proj", bias=True),
        *_norm(f"{tower}.norm2", f"{block}.norm2", bias=not windows),
        *(e for n in mlp for e in _linear(f"{tower}.{n}", f"{block}.mlp.{n}", bias=True)),
        *_norm("visual.merger.norm", "visual.merger.ln_q", bias=not windows),
        *_linear("visual.merger.fc1", "visual.merger.mlp.0", bias=True),
        *_linear("visual.merger.fc2", "visual.merger.mlp.2", bias=True),
        Entry("embed_tokens.embedding", "model.embed_tokens.weight", "same"),
        *_norm(f"{layers}.input_norm", f"{layer}.input_layernorm", bias=False),
        *_linear(f"{layers}.attention.q_proj", f"{layer}.self_attn.q_proj", bias=True),
        *_linear(f"{layers}.attention.k_proj", f"{layer}.self_attn.k_proj", bias=True),
        *_linear(f"{layers}.attention.v_proj", f"{layer}.self_attn.v_proj", bias=True),
        *_linear(f"{layers}.attention.o_proj", f"{layer}.self_attn.o_proj", bias=False),
        *_norm(f"{layers}.post_norm", f"{layer}.post_attention_layernorm", bias=False),
        *_linear(f"{layers}.gate_proj", f"{layer}.mlp.gate_proj", bias=False),
        *_linear(f"{layers}.up_proj", f"{layer}.mlp.up_proj", bias=False),
        *_linear(f"{layers}.down_proj", f"{layer}.mlp.down_proj", bias=False),
        *_norm("decoder.norm", "model.norm", bias=False),
    ]
    if not config.text.tie_word_embeddings:
        entries += _linear("lm_head", "lm_head", bias=False)
    return entries


def published_name(name: str) -> str:
    """Converts a tensor's name from newer transformers to the published form."""
    for new, old in (("model.visual.", "visual."), ("model.language_model.", "model.")):
        if name.startswith(new):
            return old + name[len(new) :]
    return name
