"""How a model is computed, whatever its sizes."""

import dataclasses

from mirg_jax.models.layers import FLOAT32, Precision


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """How a model is computed.

    Attributes:
      precision: dtypes of computation and parameters.
      remat: what the backward pass recomputes, a name of `layers.REMAT`.
      attention: the engine, as `attention.attend` takes it: "xla", "splash" or "cudnn".
    """

    precision: Precision = FLOAT32
    remat: str = "full"
    attention: str = "xla"


DEFAULT = ModelOptions()
