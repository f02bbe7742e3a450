"""Asks a model about some images, prints its answer and draws the boxes.

    python scripts/ground.py --checkpoint=runs/demo/grpo --images=a.png,b.png \\
        --query="Where is the red circle?" --output=out.png

The images are read and the prompt is worded as in the run's own config; --config gives another.
"""

import pathlib

from absl import flags
from ml_collections import config_flags
from PIL import Image

from mirg_jax import cli
from mirg_jax.data.examples import Example
from mirg_jax.data.images import load_image
from mirg_jax.errors import DataError
from mirg_jax.evaluation.predict import predict
from mirg_jax.evaluation.report import Drawing, draw_boxes
from mirg_jax.grounding.grammar import parse_response
from mirg_jax.training import checkpoint, setup

_CONFIG = config_flags.DEFINE_config_file("config", None, "Another recipe than the run's own.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run's folder, a checkpoint, or a Hugging Face folder.", required=True
)
_IMAGES = flags.DEFINE_list("images", None, "Paths, separated by commas, in order.", required=True)
_QUERY = flags.DEFINE_string("query", None, "The question.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "PNG with the boxes drawn in.", required=True)

_COLOURS = ("red", "lime", "deepskyblue", "orange", "magenta", "yellow")


def main(_):
    config = _CONFIG.value or setup.config_of(_CHECKPOINT.value)
    mesh, how = setup.for_sampling(config)
    model = checkpoint.load_model(_CHECKPOINT.value, mesh, **how)
    tokenizer = setup.load_tokenizer(model.folder)
    paths = [pathlib.Path(path).resolve() for path in _IMAGES.value]
    config.data.image_root = "/"
    preparer = setup.make_preparer(config, tokenizer, with_response=False)
    images = tuple(str(path.relative_to("/")) for path in paths)
    question = Example(id="query", task="", images=images, question=_QUERY.value, targets=())
    (answer,) = predict(
        model,
        tokenizer,
        preparer,
        mesh,
        [(0, question)],
        batch_size=1,
        max_tokens=config.evaluation.max_tokens,
    )
    if answer.response is None:
        raise DataError(answer.error)
    print(answer.response)

    found = parse_response(answer.response, len(images)).objects
    pictures = []
    for number, path in enumerate(paths, start=1):
        drawings = [
            Drawing(obj.box, _COLOURS[i % len(_COLOURS)], obj.label or f"object {i + 1}")
            for i, obj in enumerate(found)
            if (obj.image or 1) == number
        ]
        pictures.append(draw_boxes(load_image(path.parent, path.name), drawings))
    height = max(picture.height for picture in pictures)
    sheet = Image.new("RGB", (sum(p.width + 8 for p in pictures) - 8, height), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + 8
    sheet.save(_OUTPUT.value)
    print(f"{len(found)} boxes drawn in {_OUTPUT.value}")


if __name__ == "__main__":
    cli.run(main)
