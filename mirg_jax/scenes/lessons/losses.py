"""The three losses of the small base model: visual probes, responses, and attention patterns."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float

from mirg_jax.models.language import add_deep
from mirg_jax.models.layers import unstack
from mirg_jax.models.qwen2_vl import Qwen2VL
from mirg_jax.rl.logprobs import token_logprobs
from mirg_jax.scenes.drawing import COLOURS, GRID, SHAPES, STEP
from mirg_jax.scenes.lessons.batches import Batch
from mirg_jax.scenes.lessons.patterns import HEADS, PATTERNS
from mirg_jax.scenes.lessons.pictures import Seen
from mirg_jax.types import Images

BINS = GRID // STEP + 1
# Outputs of a probe: presence, colour, shape and box of each of two objects.
PROBE_OUTPUTS = 2 * (1 + len(COLOURS) + len(SHAPES) + 4 * BINS)
SEE_WEIGHT = 0.3


def probe_loss(
    kernel: Float[Array, "E outputs"],
    features: Float[Array, "B S N E"],
    covers: Bool[Array, "B S N 2"],
    real: Bool[Array, "B S"],
    seen: Seen,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Computes the loss of a linear probe that predicts objects from visual features.

    Args:
      kernel: the probe's weights.
      features: features at N places (patches or visual tokens) of each picture.
      covers: whether each of the two objects overlaps each place.
      real: whether the slot holds a picture.
      seen: colour, shape and box of the objects.

    Returns:
      The loss, and the fraction of box coordinates predicted within one step.
    """
    out = (features @ kernel).reshape(*features.shape[:-1], 2, -1)
    present, out = out[..., 0], out[..., 1:]
    mask = covers & real[..., None, None]
    presence = optax.sigmoid_binary_cross_entropy(present, covers.astype(jnp.float32))
    presence = (presence * real[..., None, None]).sum() / (2 * covers.shape[2] * real.sum())
    cuts = np.cumsum([len(COLOURS), len(SHAPES)])
    colour, shape, box = jnp.split(out, cuts, axis=-1)
    box = box.reshape(*box.shape[:-1], 4, BINS)

    def cross_entropy(logits, labels):
        labels = jnp.broadcast_to(labels[:, :, None], logits.shape[:-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    object_loss = cross_entropy(colour, seen.colour) + cross_entropy(shape, seen.shape)
    object_loss += cross_entropy(box, seen.bins).sum(-1)
    near = (jnp.abs(box.argmax(-1) - seen.bins[:, :, None]) <= 1).mean(-1)
    count = mask.sum()
    return presence + (object_loss * mask).sum() / count / 4, (near * mask).sum() / count


def see(
    trained: dict[str, Any], images: Images, seen: Seen, *, graph: nnx.GraphDef
) -> tuple[Float[Array, ""], tuple[dict[str, Array], Float[Array, "B V W"]]]:
    """Computes the vision tower's loss, by probes of its patches and of its visual tokens.

    Args:
      trained: parameters of the model and of the probes.
      images: the pictures.
      seen: the objects in them.
      graph: the model's graph.

    Returns:
      The loss; and a pair of metrics and visual tokens.
    """
    visual = nnx.merge(graph, trained["model"]).visual
    features, deep = visual.features(images)
    tokens = visual.merge(features, deep)
    B, S, P, _ = features.shape
    real = images.positions[:, :, 0, 0] >= 0
    quarters = seen.covers.reshape(B, S, P // 4, 4, 2).any(axis=3)
    probes = trained["probes"]
    patch, _ = probe_loss(probes["patch"], features, seen.covers, real, seen)
    token, near = probe_loss(
        probes["token"], tokens.reshape(B, S, P // 4, -1), quarters, real, seen
    )
    return patch + token, ({"see_patch": patch, "see_token": token, "near": near}, tokens)


def decode_with_patterns(
    model: Qwen2VL, batch: Batch, visual: Float[Array, "B V W"]
) -> tuple[Float[Array, "B T M"], Float[Array, " patterns"]]:
    """Computes the decoder's hidden states and the loss of each attention pattern.

    A pattern's loss is the mean over its queries of −log of the attention weight on its keys.
    """
    decoder, text = model.decoder, batch.text
    T = text.tokens.shape[1]
    visible = (text.segments[:, :, None] == text.segments[:, None, :]) & jnp.tril(
        jnp.ones((T, T), bool)
    )
    losses = {}

    def attend_to(index, q, k, v):
        B, K, _, _, _, D = q.shape
        logits = jnp.einsum("bhtd,bhsd->bhts", q.reshape(B, K, T, D), k) * D**-0.5
        logits = jnp.where(visible[:, None], logits, -1e30)
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
        total = weights.sum(-1, keepdims=True)
        for i, name in enumerate(PATTERNS):
            layer, head = HEADS[name]
            if layer != index:
                continue
            queries = batch.codes.queries[:, i]
            wanted = queries[:, :, None] == batch.codes.keys[:, i, None, :]
            wanted &= (queries != 0)[:, :, None] & visible & ~jnp.eye(T, dtype=bool)
            has_target = wanted.any(-1)
            mass = (weights[:, head] * wanted).sum(-1) / total[:, head, :, 0]
            value = jnp.where(has_target, -jnp.log(mass + 1e-6), 0.0).sum()
            losses[name] = value / jnp.maximum(has_target.sum(), 1)
        return (weights @ v / total)[:, :, None, None], None

    x, deep = model.embed(text, visual)
    x = x[:, None]
    angles = decoder.angles(text.positions)[:, None]
    for index, layer in enumerate(unstack(decoder.layers)):
        x, _ = layer(x, angles, functools.partial(attend_to, index))
        x = add_deep(x, deep, index)
    return decoder.norm(x)[:, 0], jnp.stack([losses[name] for name in PATTERNS])


def everything(
    trained: dict[str, Any],
    batch: Batch,
    pattern_weight: Float[Array, ""],
    *,
    graph: nnx.GraphDef,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Computes the total loss: cross-entropy of responses plus weighted probe and pattern losses.

    Args:
      trained: parameters of the model and of the probes.
      batch: the conversations.
      pattern_weight: weight of the pattern loss.
      graph: the model's graph.

    Returns:
      The loss and a dictionary of metrics.
    """
    model = nnx.merge(graph, trained["model"])
    see_loss, (numbers, visual) = see(trained, batch.images, batch.seen, graph=graph)
    hidden, patterns = decode_with_patterns(model, batch, visual)
    logprobs = token_logprobs(hidden[:, :-1], model.head(), batch.text.tokens[:, 1:], chunk=1 << 20)
    labels = batch.labels[:, 1:]
    answer = -(logprobs * labels).sum() / labels.sum()
    total = answer + SEE_WEIGHT * see_loss + pattern_weight * patterns.mean()
    return total, numbers | {"answer": answer, "patterns": patterns}
