"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: vision tower, decoder, token embedding and output head."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mirg_jax.models.config import ModelConfig
from mirg_jax.models.language import Cache, Decoder, DecoderLayer
from mirg_jax.models.layers import gather, in_order, linear
from mirg_jax.models.options import DEFAULT, ModelOptions
from mirg_jax.models.vision import VisionTower
from mirg_jax.sharding import constrain
from mirg_jax.types import Images, KeyValues, Rollout, Text


class Qwen2VL(nnx.Module):
    """The whole model. Split it once (`nnx.split`) and use it as a pure function of parameters."""

    def __init__(
        self,
        config: ModelConfig,
        options: ModelOptions = DEFAULT,
        *,
        rngs: nnx.Rngs,
    ):
        self.config, self.precision = config, options.precision
        text, precision = config.text, options.precision
        self.visual = VisionTower(config.vision, options, rngs=rngs)
        self.embed_tokens = nnx.Embed(
            text.vocab_size,
            text.hidden_size,
            dtype=precision.compute,
            param_dtype=precision.params,
            embedding_init=nnx.initializers.normal(0.02),
            embedding_metadata={"axes": ("vocab", "embed")},
            rngs=rngs,
        )
        self.decoder = Decoder(text, options, rngs=rngs)
        if not text.tie_word_embeddings:
            self.lm_head = linear(
                text.hidden_size,
                text.vocab_size,
                ("embed", "vocab"),
                bias=False,
                precision=precision,
                rngs=rngs,
            )

    def head(self) -> Float[Array, "M vocab"]:
        """Returns the matrix that maps hidden states to logits, in the compute dtype."""
        return self._gathered(self._head)

    def with_head(
        self, hidden: Float[Array, "*B M"]
    ) -> tuple[Float[Array, "*B M"], Float[Array, "M vocab"]]:
        """Returns hidden states and the output head, for the logits of a loss.

        The head's gradient is summed over the devices before the layers' backward pass, during
        which each device would hold all of it otherwise.
        """
        hidden, head = in_order(hidden, self._head)
        return hidden, self._gathered(head)

    @property
    def _head(self) -> jax.Array:
        if self.config.text.tie_word_embeddings:
            return self.embed_tokens.embedding[...]
        return self.lm_head.kernel[...]

    def _gathered(self, head: jax.Array) -> Float[Array, "M vocab"]:
        if self.config.text.tie_word_embeddings:
            return self._gathered_table(head).T
        return gather(head.astype(self.precision.compute), ("embed", "vocab"))

    def table(self) -> Float[Array, "vocab M"]:
        """Returns the token embedding table in the compute dtype."""
        return self._gathered_table(self.embed_tokens.embedding[...])

    def _gathered_table(self, embedding: jax.Array) -> Float[Array, "vocab M"]:
        return gather(embedding.astype(self.precision.compute), ("vocab", "embed"))

    def embed_words(self, tokens: Int[Array, "*B T"]) -> Float[Array, "*B T M"]:
        """Looks up token embeddings."""
        return constrain(self.table()[tokens], "rows", *[None] * tokens.ndim)

    def embed(
        self,
        text: Text,
        visual: Float[Array, "B V W"] | None = None,
        words: Float[Array, "B T M"] | None = None,
    ) -> tuple[Float[Array, "B T M"], Float[Array, "N B T M"] | None]:
        """Returns the decoder's inputs.

        Args:
          text: the tokens.
          visual: visual tokens; None: there are no images.
          words: the tokens' embeddings; None: they are looked up.

        Returns:
          Token embeddings, with visual tokens inserted where `visual_index` is not -1; and what is
          added after the first layers at these places (DeepStack), or None.
        """
        x = self.embed_words(text.tokens) if words is None else words
        if visual is None:
            return x, None
        index = text.visual_index[..., None]
        image = jnp.take_along_axis(visual, jnp.maximum(index, 0), axis=1)
        image, *deep = jnp.split(image, 1 + len(self.config.vision.deepstack), axis=-1)
        x = jnp.where(index >= 0, image.astype(x.dtype), x)
        return x, jnp.where(index >= 0, jnp.stack(deep), 0) if deep else None

    def see(self, images: Images | Float[Array, "B V W"] | None) -> Float[Array, "B V W"] | None:
        """Computes the images' visual tokens; returns visual tokens or None unchanged."""
        return self.visual(images) if isinstance(images, Images) else images

    def hidden(self, text: Text, visual: Float[Array, "B V W"] | None) -> Float[Array, "B T M"]:
        """Computes the hidden states of packed rows."""
        x, deep = self.embed(text, visual)
        x, positions, segments = x[:, None], text.positions[:, None], text.segments[:, None]
        return self.decoder(x, positions, segments, deep=deep)[:, 0]

    def prefill(
        self, text: Text, visual: Float[Array, "B V W"] | None
    ) -> tuple[Float[Array, "B T M"], KeyValues]:
        """Computes hidden states of prompts (segment 1), and keys and values for completions."""
        x, deep = self.embed(text, visual)
        return self.decoder.prefill(x, text.positions, text.segments, deep)

    def completion_hidden(
        self, prompt: Text, images: Images | Float[Array, "B V W"] | None, rollout: Rollout
    ) -> Float[Array, "B G L M"]:
        """Computes the hidden states that predict each completion token.

        The images and the prompt are computed once for the whole group. The first completion token
        is predicted by the prompt's last token, every other by the token before it.
        """
        (B, T), (_, G, L) = prompt.tokens.shape, rollout.tokens.shape
        # Looked up together: each lookup has a gradient of the whole table's size.
        tokens = jnp.concatenate([prompt.tokens, rollout.tokens.reshape(B, -1)], axis=1)
        words = self.embed_words(tokens)
        x, deep = self.embed(prompt, self.see(images), words[:, :T])
        after = jnp.tile(completion_positions(prompt, jnp.arange(L)[None]), (1, G, 1))
        hidden = self.decoder.of_groups(
            jnp.concatenate([x, words[:, T:]], axis=1),
            jnp.concatenate([prompt.positions, after], axis=1),
            prompt.segments,
            rollout.mask.astype(jnp.int32),
            deep,
        )
        after = hidden[:, T:].reshape(B, G, L, -1)
        first = last_token(prompt, hidden[:, :T])[:, None, None]
        first = jnp.broadcast_to(first, (B, G, 1, first.shape[-1]))
        return jnp.concatenate([first, after[:, :, :-1]], axis=2)

    def step(
        self,
        tokens: Int[Array, "B G"],
        offsets: Int[Array, " B"],
        prompt: Text,
        layers: Sequence[DecoderLayer],
        prefix: KeyValues,
        cache: Cache,
    ) -> tuple[Float[Array, "B G M"], Cache]:
        """Decodes one more token of each completion.

        Args:
          tokens: the new tokens.
          offsets: number of tokens that each prompt's completions already have.
          prompt: the prompts, one per row.
          layers: the decoder's layers, from `decoder.unstack`.
          prefix: the prompts' keys and values, one array per layer.
          cache: keys and values of the completions so far.

        Returns:
          Hidden states of the new tokens, and the updated cache.
        """
        positions = completion_positions(prompt, offsets[:, None])
        positions = jnp.broadcast_to(positions, (*tokens.shape, 3))
        x = self.embed_words(tokens)
        return self.decoder.step(x, positions, offsets, layers, prefix, cache)

    def __call__(self, text: Text, images: Images | None) -> Float[Array, "B T vocab"]:
        """Computes the logits of every token in float32, for tests and short texts.

        Training computes log-probabilities in chunks instead (`rl/logprobs.py`).
        """
        hidden = self.hidden(text, self.see(images))
        return jnp.matmul(hidden, self.head(), preferred_element_type=jnp.float32)


def completion_positions(prompt: Text, offsets: Int[Array, "#B L"]) -> Int[Array, "B L 3"]:
    """Returns M-RoPE positions of completion tokens, counted from the prompt's largest position.

    Args:
      prompt: the prompts, one per row.
      offsets: index of each token within its completion.
    """
    positions = jnp.where(prompt.segments[..., None] > 0, prompt.positions, -1)
    at = positions.max(axis=(1, 2))[:, None] + 1 + offsets
    return jnp.broadcast_to(at[..., None], (*at.shape, 3))


def last_token(prompt: Text, hidden: Float[Array, "B T M"]) -> Float[Array, "B M"]:
    """Returns the hidden state of each prompt's last token; prompts are padded on the right."""
    last = jnp.maximum((prompt.segments > 0).sum(axis=1) - 1, 0)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


def create(
    config: ModelConfig, seed: int = 0, options: ModelOptions = DEFAULT
) -> tuple[nnx.GraphDef, nnx.State]:
    """Creates a model with random weights, split into its graph and its parameters."""
    return nnx.split(Qwen2VL(config, options, rngs=nnx.Rngs(seed)))


def abstract(
    config: ModelConfig, options: ModelOptions = DEFAULT
) -> tuple[nnx.GraphDef, nnx.State]:
    """Creates a model with shapes instead of arrays, without allocating memory; see `create`."""
    return nnx.split(nnx.eval_shape(lambda: Qwen2VL(config, options, rngs=nnx.Rngs(0))))


def computed_dtypes(params: nnx.State, compute: Any) -> nnx.State:
    """Returns the dtype to which each parameter can be cast in advance without changing results.

    Matrices are cast to `compute` where they are used. Norms keep their dtype, and so do patch
    kernels, since their two frames are summed before the cast. Integers stay integers.
    """

    def one(path, leaf):
        names = [part.key for part in path if hasattr(part, "key")]
        cast = names[-1] in ("kernel", "embedding") and "patch_embed" not in names
        cast = cast and jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.dtype(compute if cast else leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, params)
