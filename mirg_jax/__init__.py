"""Multi-image reasoning and grounding with reinforcement learning, in JAX.

Examples:
  >>> import mirg_jax
  >>> model = mirg_jax.load("runs/demo/grpo")
  >>> answer = model.ground(["a.png", "b.png"], "Where is the red ring?")
  >>> answer.objects[0].image, answer.objects[0].box
  >>> answer.draw().save("answer.png")
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mirg_jax.grounding.grammar import GroundedObject
    from mirg_jax.inference.answer import GroundedAnswer
    from mirg_jax.inference.predictor import Predictor, load

__all__ = ["GroundedAnswer", "GroundedObject", "Predictor", "load"]

_WHERE = {
    "GroundedAnswer": "mirg_jax.inference.answer",
    "GroundedObject": "mirg_jax.grounding.grammar",
    "Predictor": "mirg_jax.inference.predictor",
    "load": "mirg_jax.inference.predictor",
}


def __getattr__(name: str):
    """Imports a public name on first use, so that importing the package stays fast."""
    import importlib

    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
