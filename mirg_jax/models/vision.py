"""Qwen2-VL's vision tower: patches of images of any size → visual tokens of the decoder's width."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from mirg_jax.models import rope
from mirg_jax.models.attention import attend
from mirg_jax.models.config import VisionConfig
from mirg_jax.models.layers import Precision, gather, layer_norm, linear, quick_gelu, scan, stack
from mirg_jax.sharding import constrain
from mirg_jax.types import Images

# CLIP's channel statistics, of pixels in 0–1.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


class Block(nnx.Module):
    """Pre-norm attention within an image, then an MLP with QuickGELU."""

    def __init__(
        self, config: VisionConfig, *, precision: Precision, attention: str, rngs: nnx.Rngs
    ):
        dim, hidden = config.embed_dim, config.embed_dim * config.mlp_ratio
        make = {"bias": True, "precision": precision, "rngs": rngs}
        self.num_heads, self.attention = config.num_heads, attention
        self.norm1 = layer_norm(dim, precision, rngs)
        # Queries, keys and values side by side can't be divided by heads: whole, as it is small.
        self.qkv = linear(dim, 3 * dim, ("embed", None), **make)
        self.proj = linear(dim, dim, (("heads", config.num_heads), "embed"), **make)
        self.norm2 = layer_norm(dim, precision, rngs)
        self.fc1 = linear(dim, hidden, ("embed", "mlp"), **make)
        self.fc2 = linear(hidden, dim, ("mlp", "embed"), **make)

    def __call__(
        self,
        x: Float[Array, "B S P E"],
        angles: Float[Array, "B S P half"],
        segments: Int[Array, "B S P"],
    ) -> Float[Array, "B S P E"]:
        B, S, P, E = x.shape
        x = constrain(x, "rows", None, None, None)
        qkv = self.qkv(self.norm1(x)).reshape(B, S, P, 3, self.num_heads, -1)
        q, k, v = (qkv[..., i, :, :] for i in range(3))
        q, k = rope.rotate(q, angles), rope.rotate(k, angles)
        q, k, v = (t.transpose(0, 3, 1, 2, 4) for t in (q, k, v))  # B heads S P D
        q, k, v = (constrain(t, "rows", "heads", None, None, None) for t in (q, k, v))
        k, v = (t.reshape(B, -1, P, t.shape[-1]) for t in (k, v))
        out = attend(
            q[:, :, :, None], k, v, segments, segments, causal=False, engine=self.attention
        )[:, :, :, 0]
        x = x + self.proj(out.transpose(0, 2, 3, 1, 4).reshape(B, S, P, E))
        hidden = constrain(quick_gelu(self.fc1(self.norm2(x))), "rows", None, None, "mlp")
        return x + self.fc2(hidden)


class Merger(nnx.Module):
    """Four neighbouring patches → one visual token."""

    def __init__(self, config: VisionConfig, *, precision: Precision, rngs: nnx.Rngs):
        merged = config.embed_dim * config.merge_size**2
        make = {"bias": True, "precision": precision, "rngs": rngs}
        self.norm = layer_norm(config.embed_dim, precision, rngs)
        self.fc1 = linear(merged, merged, ("embed", "mlp"), **make)
        self.fc2 = linear(merged, config.out_dim, ("mlp", "embed"), **make)

    def __call__(self, x: Float[Array, "B S P E"]) -> Float[Array, "B V D"]:
        x = self.norm(x).reshape(x.shape[0], -1, self.fc1.in_features)
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class VisionTower(nnx.Module):
    """Patch embedding, blocks with two-axis rotary positions, merger."""

    def __init__(
        self,
        config: VisionConfig,
        *,
        precision: Precision,
        remat: str,
        attention: str,
        rngs: nnx.Rngs,
    ):
        self.config, self.precision, self.remat = config, precision, remat
        inputs = 3 * config.temporal_patch_size * config.patch_size**2
        self.patch_embed = linear(
            inputs, config.embed_dim, (None, "embed"), bias=False, precision=precision, rngs=rngs
        )
        self.blocks = stack(
            lambda rngs: Block(config, precision=precision, attention=attention, rngs=rngs),
            config.depth,
            rngs,
        )
        self.merger = Merger(config, precision=precision, rngs=rngs)

    def embed_patches(self, images: Images) -> Float[Array, "B S P E"]:
        """Normalises the bytes and embeds them.

        The tower was built for pairs of video frames; an image is the same frame twice, so the
        two frames' kernels are added instead of the frame being repeated.
        """
        config = self.config
        B, S, P, _ = images.patches.shape
        pixels = images.patches.astype(jnp.float32).reshape(B, S, P, 3, -1) / 255.0
        pixels = (pixels - MEAN[:, None]) / STD[:, None]
        kernel = self.patch_embed.kernel[...].reshape(
            3, config.temporal_patch_size, config.patch_size**2, config.embed_dim
        )
        kernel = kernel.sum(axis=1).reshape(-1, config.embed_dim).astype(self.precision.compute)
        pixels = pixels.reshape(B, S, P, -1).astype(self.precision.compute)
        return pixels @ gather(kernel, (None, "embed"))

    def features(self, images: Images) -> Float[Array, "B S P E"]:
        """Patch features before the merger."""
        segments = (images.positions[..., 0] >= 0).astype(jnp.int32)
        angles = rope.patch_angles(images.positions, self.config.head_dim)

        def body(block, x, _):
            return block(x, angles, segments), None

        return scan(body, self.embed_patches(images), self.blocks, remat=self.remat)[0]

    def __call__(self, images: Images) -> Float[Array, "B V D"]:
        """The visual tokens of all slots of a row, one after another: V = S · P / 4."""
        return self.merger(self.features(images))
