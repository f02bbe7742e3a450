"""One question about some images, to a model."""

import pathlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from mirg_jax.data.examples import Example
from mirg_jax.errors import DataError
from mirg_jax.inference.predict import predict
from mirg_jax.runs import loading
from mirg_jax.training import setup


def ask(
    config: ConfigDict, *, checkpoint: str, images: Sequence[str | pathlib.Path], question: str
) -> str:
    """The model's greedy answer.

    Args:
      config: how images are read and the prompt is worded; `setup.config_of` has a run's own.
      checkpoint: what `loading.load_model` takes.
      images: paths, in order.

    Raises:
      UserError: for a checkpoint or an image that can't be used.
    """
    mesh, how = setup.for_sampling(config)
    model = loading.load_model(checkpoint, mesh, **how)
    tokenizer = setup.load_tokenizer(model.folder)
    config = config.copy_and_resolve_references()
    config.data.image_root = "/"
    paths = tuple(str(pathlib.Path(path).resolve().relative_to("/")) for path in images)
    (answer,) = predict(
        model,
        tokenizer,
        setup.make_preparer(config, tokenizer, with_response=False),
        mesh,
        [(0, Example(id="query", task="", images=paths, question=question, targets=()))],
        batch_size=1,
        max_tokens=config.evaluation.max_tokens,
    )
    if answer.response is None:
        raise DataError(answer.error)
    return answer.response
