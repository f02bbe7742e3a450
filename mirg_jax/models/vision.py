"""Vision towers of the family: patches of images of any size → visual tokens.

Qwen2.5-VL's tower has window attention (`config.window_size`), RMSNorm and gated MLPs. Qwen3-VL's
has learned position embeddings (`config.position_side`), and passes on features of some of its
blocks (`config.deepstack`, arXiv 2406.04334).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mirg_jax.models import position_embeddings, rope, windows
from mirg_jax.models.attention import attend
from mirg_jax.models.config import VisionConfig
from mirg_jax.models.layers import (
    Precision,
    gather,
    layer_norm,
    linear,
    quick_gelu,
    rms_norm,
    scan,
    stack,
    tanh_gelu,
)
from mirg_jax.models.options import DEFAULT, ModelOptions
from mirg_jax.sharding import constrain
from mirg_jax.types import Images

# CLIP's channel statistics, for pixel values in 0–1.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
_HALF = np.full(3, 0.5, np.float32)


def pixel_statistics(
    config: VisionConfig,
) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Returns the mean and deviation by which pixel values in 0–1 are normalised."""
    return (_HALF, _HALF) if config.position_side else (MEAN, STD)


def _norm(
    config: VisionConfig, precision: Precision, rngs: nnx.Rngs, dim: int | None = None
) -> nnx.Module:
    if config.window_size:
        return rms_norm(config.embed_dim, 1e-6, precision, rngs)
    return layer_norm(dim or config.embed_dim, precision, rngs)


class Places(NamedTuple):
    """Positions of the patches, in the order in which the blocks process them."""

    angles: Float[Array, "B S P half"]  # rotation angles
    images: Int[Array, "B S P"]  # 1 for patches of an image; 0 is padding
    windows: Int[Array, "B S P"] | None  # window indices; None in a tower without windows


class Block(nnx.Module):
    """Vision block: attention within an image or its windows, then an MLP; both are pre-norm.

    The MLP uses QuickGELU in Qwen2-VL's tower, gated SiLU in Qwen2.5-VL's, GELU in Qwen3-VL's.
    """

    def __init__(
        self, config: VisionConfig, *, precision: Precision, attention: str, rngs: nnx.Rngs
    ):
        dim = config.embed_dim
        make = {"bias": True, "precision": precision, "rngs": rngs}
        self.num_heads, self.attention, self.window = config.num_heads, attention, config.window
        self.norm1 = _norm(config, precision, rngs)
        # Queries, keys and values are concatenated in one kernel, so it can't be sharded by heads.
        # It is small, so it stays unsharded along that axis.
        self.qkv = linear(dim, 3 * dim, ("embed", None), **make)
        self.proj = linear(dim, dim, (("heads", config.num_heads), "embed"), **make)
        self.norm2 = _norm(config, precision, rngs)
        if self.window:
            self.gate_proj = linear(dim, config.mlp_dim, ("embed", "mlp"), **make)
            self.up_proj = linear(dim, config.mlp_dim, ("embed", "mlp"), **make)
            self.down_proj = linear(config.mlp_dim, dim, ("mlp", "embed"), **make)
        else:
            self.fc1 = linear(dim, config.mlp_width, ("embed", "mlp"), **make)
            self.fc2 = linear(config.mlp_width, dim, ("mlp", "embed"), **make)
            self.activation = tanh_gelu if config.position_side else quick_gelu

    def over_image(self, q, k, v, places: Places) -> Float[Array, "B N S P D"]:
        """Computes attention of every patch to its whole image; q, k, v are [B, N, S, P, D]."""
        k, v = (t.reshape(t.shape[0], -1, *t.shape[-2:]) for t in (k, v))
        segments = places.images
        q = q[:, :, :, None]
        out = attend(q, k, v, segments, segments, causal=False, packed=False, engine=self.attention)
        return out[:, :, :, 0]

    def over_windows(self, q, k, v, places: Places) -> Float[Array, "B N S P D"]:
        """Computes attention of every patch to its window; q, k, v are [B, N, S, P, D]."""
        return windows.attend_within(q, k, v, places.windows, self.window**2)

    def __call__(
        self, x: Float[Array, "B S P E"], places: Places, full: Bool[Array, ""] | None = None
    ) -> Float[Array, "B S P E"]:
        """Applies the block.

        Args:
          x: patch features.
          places: positions of the patches.
          full: whether this block attends to the whole image instead of windows; None in a tower
            without windows.
        """
        B, S, P, E = x.shape
        x = constrain(x, "rows", None, None, None)
        qkv = self.qkv(self.norm1(x)).reshape(B, S, P, 3, self.num_heads, -1)
        q, k, v = (qkv[..., i, :, :] for i in range(3))
        q, k = rope.rotate(q, places.angles), rope.rotate(k, places.angles)
        q, k, v = (t.transpose(0, 3, 1, 2, 4) for t in (q, k, v))  # B heads S P D
        q, k, v = (constrain(t, "rows", "heads", None, None, None) for t in (q, k, v))
        if full is None:
            out = self.over_image(q, k, v, places)
        else:
            # Rematerialised: otherwise the scores of both branches would be saved for the backward
            # pass.
            branches = map(jax.checkpoint, (self.over_image, self.over_windows))
            out = jax.lax.cond(full, *branches, q, k, v, places)
        x = x + self.proj(out.transpose(0, 2, 3, 1, 4).reshape(B, S, P, E))
        return x + self.mlp(self.norm2(x))

    def mlp(self, x: Float[Array, "B S P E"]) -> Float[Array, "B S P E"]:
        """Applies the MLP."""
        if self.window:
            hidden = jax.nn.silu(self.gate_proj(x)) * self.up_proj(x)
            return self.down_proj(constrain(hidden, "rows", None, None, "mlp"))
        return self.fc2(constrain(self.activation(self.fc1(x)), "rows", None, None, "mlp"))


class Merger(nnx.Module):
    """Patch merger: maps each 2×2 block of patches to one visual token of the decoder's width.

    The norm is of patches, or of whole blocks (`whole`), as for DeepStack's features.
    """

    def __init__(
        self, config: VisionConfig, *, precision: Precision, rngs: nnx.Rngs, whole: bool = False
    ):
        merged = config.embed_dim * config.merge_size**2
        make = {"bias": True, "precision": precision, "rngs": rngs}
        self.whole = whole
        self.norm = _norm(config, precision, rngs, merged if whole else None)
        self.fc1 = linear(merged, merged, ("embed", "mlp"), **make)
        self.fc2 = linear(merged, config.out_dim, ("mlp", "embed"), **make)

    def __call__(self, x: Float[Array, "B S P E"]) -> Float[Array, "B V D"]:
        blocks = x.shape[0], -1, self.fc1.in_features
        x = self.norm(x.reshape(blocks)) if self.whole else self.norm(x).reshape(blocks)
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class VisionTower(nnx.Module):
    """Vision tower: patch embedding, transformer blocks with two-axis rotary positions, merger."""

    def __init__(
        self,
        config: VisionConfig,
        options: ModelOptions = DEFAULT,
        *,
        rngs: nnx.Rngs,
    ):
        precision = options.precision
        self.config, self.precision, self.remat = config, precision, options.remat
        inputs = 3 * config.temporal_patch_size * config.patch_size**2
        self.patch_embed = linear(
            inputs,
            config.embed_dim,
            (None, "embed"),
            bias=bool(config.position_side),
            precision=precision,
            rngs=rngs,
        )
        if config.position_side:
            self.position_embed = nnx.Embed(
                config.position_side**2,
                config.embed_dim,
                dtype=precision.compute,
                param_dtype=precision.params,
                embedding_init=nnx.initializers.normal(0.02),
                embedding_metadata={"axes": (None, "embed")},
                rngs=rngs,
            )
        self.blocks = stack(
            lambda rngs: Block(config, precision=precision, attention=options.attention, rngs=rngs),
            config.depth,
            rngs,
        )
        self.merger = Merger(config, precision=precision, rngs=rngs)
        if config.deepstack:
            self.deep_mergers = stack(
                lambda rngs: Merger(config, precision=precision, rngs=rngs, whole=True),
                len(config.deepstack),
                rngs,
            )

    def embed_patches(self, images: Images) -> Float[Array, "B S P E"]:
        """Normalises the pixels and embeds the patches and, in Qwen3-VL, their positions.

        The patch kernel takes two video frames, and an image is the same frame twice. Instead of
        repeating the frame, the kernels of the two frames are summed.
        """
        config = self.config
        B, S, P, _ = images.patches.shape
        pixels = images.patches.astype(jnp.float32).reshape(B, S, P, 3, -1) / 255.0
        mean, std = pixel_statistics(config)
        pixels = (pixels - mean[:, None]) / std[:, None]
        kernel = self.patch_embed.kernel[...]
        frames = kernel.reshape(3, config.temporal_patch_size, -1, kernel.shape[-1])
        kernel = frames.sum(axis=1).reshape(-1, kernel.shape[-1]).astype(self.precision.compute)
        pixels = pixels.reshape(B, S, P, -1).astype(self.precision.compute)
        x = pixels @ gather(kernel, (None, "embed"))
        if not config.position_side:
            return x
        table = self.position_embed.embedding[...].astype(self.precision.compute)
        learned = position_embeddings.interpolate(
            gather(table, (None, "embed")), images.positions, config.position_side
        )
        return (
            x
            + gather(self.patch_embed.bias[...].astype(x.dtype), ("embed",))
            + learned.astype(x.dtype)
        )

    def features(
        self, images: Images
    ) -> tuple[Float[Array, "B S P E"], Float[Array, "N B S P E"] | None]:
        """Computes the features of patches: of the last block, and of those of DeepStack."""
        if not self.config.window:
            return self._blocks(images)
        # Inside the blocks, patches are sorted by window.
        numbers = windows.numbers(images.positions, self.config.window)
        there, back = (index[..., None] for index in windows.order(numbers))
        images = Images(*(jnp.take_along_axis(x, there, axis=2) for x in images))
        numbers = jnp.take_along_axis(numbers, there[..., 0], axis=2)
        return jnp.take_along_axis(self._blocks(images, numbers)[0], back, axis=2), None

    def _blocks(
        self, images: Images, numbers: Int[Array, "B S P"] | None = None
    ) -> tuple[Float[Array, "B S P E"], Float[Array, "N B S P E"] | None]:
        """Applies patch embedding and all blocks; `numbers` are the patches' window indices."""
        angles = rope.patch_angles(images.positions, self.config.head_dim)
        inside = (images.positions[..., 0] >= 0).astype(jnp.int32)
        places = Places(angles, inside, numbers)
        full = None
        if self.config.window:
            full = jnp.array([i in self.config.full_blocks for i in range(self.config.depth)])

        def body(block, x, full):
            return block(x, places, full), None

        x = self.embed_patches(images)
        if not self.config.deepstack:
            return scan(body, x, self.blocks, full, remat=self.remat)[0], None

        # Each block's output goes where that of the next block of DeepStack belongs, which then
        # overwrites it; those after the last of these blocks go to a place of their own.
        def keep(block, carry, place):
            x, kept = carry
            x = block(x, places)
            return (x, jax.lax.dynamic_update_index_in_dim(kept, x, place, 0)), None

        chosen, count = self.config.deepstack, len(self.config.deepstack)
        goes_to = np.searchsorted(chosen, np.arange(self.config.depth)).astype(np.int32)
        kept = jnp.zeros((count + 1, *x.shape), x.dtype)
        (x, kept), _ = scan(keep, (x, kept), self.blocks, jnp.asarray(goes_to), remat=self.remat)
        return x, kept[:count]

    def merge(
        self, features: Float[Array, "B S P E"], deep: Float[Array, "N B S P E"] | None
    ) -> Float[Array, "B V W"]:
        """Merges the features of patches, from `features`, to visual tokens."""
        tokens = self.merger(features)
        if deep is None:
            return tokens

        def body(merger, _, features):
            return None, merger(features)

        _, more = scan(body, None, self.deep_mergers, deep, remat=self.remat)
        return jnp.concatenate([tokens, *more], axis=-1)

    def __call__(self, images: Images) -> Float[Array, "B V W"]:
        """Computes the visual tokens of each row, its slots concatenated: V = S · P / 4.

        Beside a token's features for the decoder's input lie those for its first layers, if the
        tower has DeepStack: W = (1 + N) · M.
        """
        return self.merge(*self.features(images))
