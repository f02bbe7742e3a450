"""The decoder: grouped-query attention, SwiGLU, M-RoPE; layers are stacked and scanned."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mirg_jax.models import rope
from mirg_jax.models.attention import attend
from mirg_jax.models.config import TextConfig
from mirg_jax.models.layers import Precision, linear, rms_norm, scan, stack, unstack
from mirg_jax.models.options import DEFAULT, ModelOptions
from mirg_jax.sharding import constrain
from mirg_jax.types import KeyValues


class Cache(NamedTuple):
    """Key/value cache of completions during decoding: ring buffers over the last L steps.

    There is one array per layer: a compiled loop updates whole arrays in place, but would copy
    slices of a stacked array.
    """

    keys: tuple[Float[Array, "B KG L D"], ...]
    values: tuple[Float[Array, "B KG L D"], ...]
    steps: Int[Array, ""]  # number of steps so far; step i is written at index i modulo L

    def grow(self, limit: int) -> "Cache":
        """Returns a copy with room for `limit` steps; call it before the ring buffers wrap around.

        Args:
          limit: the new L.
        """

        def grown(array):
            return jnp.pad(array, [(0, 0), (0, 0), (0, limit - array.shape[2]), (0, 0)])

        return Cache(tuple(map(grown, self.keys)), tuple(map(grown, self.values)), self.steps)


def _unchanged(x: jax.Array) -> jax.Array:
    """Stands for the norm of queries and keys where there is none."""
    return x


class Attention(nnx.Module):
    """Query, key, value and output projections of grouped-query attention."""

    def __init__(self, config: TextConfig, *, precision: Precision, rngs: nnx.Rngs):
        self.num_kv_heads, self.head_dim = config.num_kv_heads, config.head_dim
        dim, q_dim, kv_dim = (
            config.hidden_size,
            *(count * config.head_dim for count in (config.num_heads, config.num_kv_heads)),
        )
        make = {"precision": precision, "rngs": rngs}
        # Sharded only by whole key/value heads, each together with the query heads that share it.
        heads = ("heads", config.num_kv_heads)
        self.q_proj = linear(dim, q_dim, ("embed", heads), bias=config.qkv_bias, **make)
        self.k_proj = linear(dim, kv_dim, ("embed", heads), bias=config.qkv_bias, **make)
        self.v_proj = linear(dim, kv_dim, ("embed", heads), bias=config.qkv_bias, **make)
        self.o_proj = linear(q_dim, dim, (heads, "embed"), bias=False, **make)

        def head_norm():
            if not config.qk_norm:
                return _unchanged
            return rms_norm(config.head_dim, config.rms_norm_eps, precision, rngs)

        self.q_norm, self.k_norm = head_norm(), head_norm()

    def project(
        self, x: Float[Array, "B G T M"], angles: Float[Array, "B G T half"]
    ) -> tuple[Float[Array, "B K G R T D"], Float[Array, "B KG T D"], Float[Array, "B KG T D"]]:
        """Returns queries and keys with rotary embeddings, and values; head axes come first."""
        B, G, T, _ = x.shape
        split = (B, G, T, -1, self.head_dim)
        q = rope.rotate(self.q_norm(self.q_proj(x).reshape(split)), angles)
        k = rope.rotate(self.k_norm(self.k_proj(x).reshape(split)), angles)
        v = self.v_proj(x).reshape(split)
        q = q.reshape(B, G, T, self.num_kv_heads, -1, self.head_dim)
        q = q.transpose(0, 3, 1, 4, 2, 5)
        k, v = (x.transpose(0, 3, 1, 2, 4) for x in (k, v))
        q, k, v = (constrain(x, "rows", "heads", *[None] * (x.ndim - 2)) for x in (q, k, v))
        k, v = (x.reshape(B, -1, T, self.head_dim) for x in (k, v))
        return q, k, v

    def merge_heads(self, out: Float[Array, "B K G R T D"]) -> Float[Array, "B G T M"]:
        """Concatenates the heads and applies the output projection."""
        B, _, G, _, T, _ = out.shape
        return self.o_proj(out.transpose(0, 2, 4, 1, 3, 5).reshape(B, G, T, -1))


class DecoderLayer(nnx.Module):
    """Decoder layer: pre-norm attention, then a pre-norm SwiGLU MLP."""

    def __init__(self, config: TextConfig, *, precision: Precision, rngs: nnx.Rngs):
        dim, hidden, epsilon = config.hidden_size, config.intermediate_size, config.rms_norm_eps
        make = {"bias": False, "precision": precision, "rngs": rngs}
        self.input_norm = rms_norm(dim, epsilon, precision, rngs)
        self.attention = Attention(config, precision=precision, rngs=rngs)
        self.post_norm = rms_norm(dim, epsilon, precision, rngs)
        self.gate_proj = linear(dim, hidden, ("embed", "mlp"), **make)
        self.up_proj = linear(dim, hidden, ("embed", "mlp"), **make)
        self.down_proj = linear(hidden, dim, ("mlp", "embed"), **make)

    def __call__(self, x, angles, attend_to):
        """Applies the layer.

        Args:
          x: hidden states [B, G, T, M].
          angles: rotation angles of M-RoPE [B, G, T, half].
          attend_to: function (q, k, v) -> (attention output, extra result); it decides which keys
            the queries attend to.

        Returns:
          The layer's output [B, G, T, M] and the extra result of `attend_to`.
        """
        x = constrain(x, "rows", None, None, None)
        q, k, v = self.attention.project(self.input_norm(x), angles)
        out, extra = attend_to(q, k, v)
        x = x + self.attention.merge_heads(out)
        h = self.post_norm(x)
        h = jax.nn.silu(self.gate_proj(h)) * self.up_proj(h)
        return x + self.down_proj(constrain(h, "rows", None, None, "mlp")), extra


def add_deep(
    x: Float[Array, "B G T M"],
    deep: Float[Array, "N B P M"] | None,
    number: Int[Array, ""] | int | None,
) -> Float[Array, "B G T M"]:
    """Adds DeepStack's features to the output of one of the first N layers.

    Args:
      x: the layer's output.
      deep: what is added after each of these layers, to the first P tokens; None: nothing.
      number: the layer's number, from 0; None without `deep`.
    """
    if deep is None:
        return x
    features = deep[jnp.minimum(number, len(deep) - 1)][:, None].astype(x.dtype)
    features = jnp.pad(features, [(0, 0), (0, 0), (0, x.shape[2] - features.shape[2]), (0, 0)])
    return x + jnp.where(number < len(deep), features, 0)


class Decoder(nnx.Module):
    """All decoder layers and the final norm.

    Hidden states have a branch axis: x is [B, G, T, M], with G = 1 for prompts.
    """

    def __init__(
        self,
        config: TextConfig,
        options: ModelOptions = DEFAULT,
        *,
        rngs: nnx.Rngs,
    ):
        precision = options.precision
        self.config, self.precision, self.remat = config, precision, options.remat
        self.attend = functools.partial(attend, engine=options.attention)
        self.layers = stack(
            lambda rngs: DecoderLayer(config, precision=precision, rngs=rngs),
            config.num_layers,
            rngs,
        )
        self.norm = rms_norm(config.hidden_size, config.rms_norm_eps, precision, rngs)

    def angles(self, positions: Int[Array, "*B T 3"]) -> Float[Array, "*B T half"]:
        """Returns M-RoPE's rotation angles at the given positions."""
        config = self.config
        return rope.mrope_angles(
            positions,
            config.mrope_section,
            config.rope_theta,
            interleaved=config.mrope_interleaved,
        )

    def __call__(
        self,
        x: Float[Array, "B G T M"],
        positions: Int[Array, "B G T 3"],
        segments: Int[Array, "B G T"],
        deep: Float[Array, "N B T M"] | None = None,
    ) -> Float[Array, "B G T M"]:
        """Computes the hidden states of whole sequences with causal attention.

        Args:
          x: token embeddings.
          positions: M-RoPE positions.
          segments: segment IDs; 0 is padding.
          deep: what is added after the first N layers (DeepStack); None: nothing.

        Returns:
          Hidden states after the final norm.
        """
        angles = self.angles(positions)

        def attend_to(q, k, v):
            return self.attend(q, k, v, segments, segments, causal=True), None

        return self._through_layers(x, angles, attend_to, deep)[0]

    def of_groups(
        self,
        x: Float[Array, "B A M"],
        positions: Int[Array, "B A 3"],
        segments: Int[Array, "B T"],
        branches: Int[Array, "B G L"],
        deep: Float[Array, "N B T M"] | None = None,
    ) -> Float[Array, "B A M"]:
        """Computes the hidden states of prompts and of the G completions that continue each.

        All tokens of a row go through a layer together, so that its weights are gathered, and their
        gradients are summed, once; only attention tells the prompt and the completions apart.

        Args:
          x: embeddings of a row's prompt, then of its completions: A = T + G * L tokens.
          positions: M-RoPE positions of the same.
          segments: 1 for a row's prompt, then 0 for padding.
          branches: 1 for tokens of the completions, 0 for padding.
          deep: what is added to the prompts after the first layers (DeepStack); None: nothing.
        """
        T, angles = segments.shape[-1], self.angles(positions)[:, None]
        B, G, L = branches.shape
        prompt, prompts = segments[:, None], functools.partial(self.attend, packed=False)

        def attend_to(q, k, v):
            _, K, _, R, _, D = q.shape
            before = {"prefix_k": k[:, :, :T], "prefix_v": v[:, :, :T], "prefix_segments": segments}
            first = prompts(q[..., :T, :], k[:, :, :T], v[:, :, :T], prompt, prompt, causal=True)
            q = q[:, :, 0, :, T:].reshape(B, K, R, G, L, D).swapaxes(2, 3)
            k, v = (x[:, :, T:].reshape(B, K * G, L, D) for x in (k, v))
            rest = self.attend(q, k, v, branches, branches, causal=True, **before)
            rest = rest.swapaxes(2, 3).reshape(B, K, 1, R, G * L, D)
            return jnp.concatenate([first, rest], axis=4), None

        return self._through_layers(x[:, None], angles, attend_to, deep)[0][:, 0]

    def _through_layers(self, x, angles, attend_to, deep):
        """Applies all layers and the final norm.

        Args:
          x, angles, attend_to: as of `DecoderLayer`.
          deep: as of `add_deep`.

        Returns:
          The hidden states, and the extra results of `attend_to` with a leading layer axis.
        """

        def body(layer, x, number):
            x, extra = layer(x, angles, attend_to)
            return add_deep(x, deep, number), extra

        # Only what is added after a layer depends on the layer's number.
        numbers = None if deep is None else jnp.arange(self.config.num_layers)
        x, extra = scan(body, x, self.layers, numbers, remat=self.remat)
        return self.norm(x), extra

    def prefill(
        self,
        x: Float[Array, "B T M"],
        positions: Int[Array, "B T 3"],
        segments: Int[Array, "B T"],
        deep: Float[Array, "N B T M"] | None = None,
    ) -> tuple[Float[Array, "B T M"], KeyValues]:
        """Computes hidden states of prompts, and the keys and values for their completions.

        Args:
          x: token embeddings.
          positions: M-RoPE positions.
          segments: 1 for a row's prompt, then 0 for padding.
          deep: what is added after the first N layers (DeepStack); None: nothing.
        """
        angles = self.angles(positions)[:, None]

        def attend_to(q, k, v):
            own = segments[:, None]  # a row is one prompt
            out = self.attend(q, k, v, own, own, causal=True, packed=False)
            return out, (k, v)  # one branch: KG is K

        x, (keys, values) = self._through_layers(x[:, None], angles, attend_to, deep)
        return x[:, 0], KeyValues(keys, values, segments)

    def init_cache(self, batch: int, group: int, length: int) -> Cache:
        """Returns an empty cache for `batch` rows of `group` completions of `length` tokens."""
        config = self.config
        shape = (batch, config.num_kv_heads * group, length, config.head_dim)
        zeros = (jnp.zeros(shape, self.precision.compute),) * config.num_layers
        return Cache(zeros, zeros, jnp.zeros((), jnp.int32))

    def unstack(self) -> list[DecoderLayer]:
        """Returns the layers as separate modules; call it once, before a decoding loop."""
        return unstack(self.layers)

    def step(
        self,
        x: Float[Array, "B G M"],
        positions: Int[Array, "B G 3"],
        offsets: Int[Array, " B"],
        layers: Sequence[DecoderLayer],
        prefix: KeyValues,
        cache: Cache,
    ) -> tuple[Float[Array, "B G M"], Cache]:
        """Decodes one new token per branch.

        Args:
          x: embeddings of the new tokens.
          positions: M-RoPE positions of the new tokens.
          offsets: number of tokens that each row's completions already have. Only that many of the
            latest cache entries belong to them; older entries are masked.
          layers: from `unstack`.
          prefix: keys and values of each row's prompt, one array per layer.
          cache: keys and values of the completions so far.

        Returns:
          Hidden states after the final norm, and the cache with the new token written.
        """
        angles = self.angles(positions)[:, :, None]
        B, G, L = *x.shape[:2], cache.keys[0].shape[2]
        ones = jnp.ones((B, G, 1), jnp.int32)
        age = (cache.steps - jnp.arange(L)) % L
        own = (age <= offsets[:, None]).astype(jnp.int32)
        own = jnp.broadcast_to(own[:, None], (B, G, L))
        where = (0, 0, cache.steps % L, 0)

        def attend_to(q, k, v, *, old_k, old_v, prefix_k, prefix_v):
            all_k = jax.lax.dynamic_update_slice(old_k, k.astype(old_k.dtype), where)
            all_v = jax.lax.dynamic_update_slice(old_v, v.astype(old_v.dtype), where)
            out = attend(
                q,
                all_k,
                all_v,
                ones,
                own,
                causal=False,
                prefix_k=prefix_k,
                prefix_v=prefix_v,
                prefix_segments=prefix.segments,
            )
            return out, (all_k, all_v)

        x, keys, values = x[:, :, None], [], []
        names = "old_k", "old_v", "prefix_k", "prefix_v"
        for layer, *arrays in zip(
            layers, cache.keys, cache.values, prefix.keys, prefix.values, strict=True
        ):
            given = dict(zip(names, arrays, strict=True))
            x, (all_k, all_v) = layer(x, angles, functools.partial(attend_to, **given))
            keys.append(all_k)
            values.append(all_v)
        return self.norm(x)[:, :, 0], Cache(tuple(keys), tuple(values), cache.steps + 1)
