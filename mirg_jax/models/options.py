"""Options of a model's computation that do not depend on its architecture."""

import dataclasses

from mirg_jax.models.layers import FLOAT32, Precision


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Options of a model's computation.

    Attributes:
      precision: dtypes of computation and parameters.
      remat: what the backward pass recomputes; a key of `layers.REMAT`.
      attention: implementation used by `attention.attend`: "xla", "splash" or "cudnn".
    """

    precision: Precision = FLOAT32
    remat: str = "full"
    attention: str = "xla"


DEFAULT = ModelOptions()
