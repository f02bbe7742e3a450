"""Asks a model a question about images, prints the answer and draws its boxes.

    python scripts/ground.py --checkpoint=runs/demo/grpo --images=a.png,b.png \\
        --query="Where is the red circle?" --output=out.png

Settings for images and prompt are those that the run was trained with, or those of --config.
"""

from absl import flags
from ml_collections import config_flags

from mirg_jax import cli
from mirg_jax.inference.pictures import check_picture, save_picture
from mirg_jax.inference.predictor import load
from mirg_jax.runs.settings import read

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe whose settings are used; by default those the run was trained with."
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "Model to ask: a run's folder, one of its checkpoints, RUN/best, a Hugging Face folder or a "
    "hub name.",
    required=True,
)
_IMAGES = flags.DEFINE_list(
    "images", None, "Paths of the images in order, separated by commas.", required=True
)
_QUERY = flags.DEFINE_string("query", None, "Question about the images.", required=True)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Path of the picture to write: the images with the boxes of the answer drawn, not those of its "
    "thoughts.",
    required=True,
)


def main(_):
    settings = read(_CONFIG.value) if _CONFIG.value else None
    output = cli.output_file(_OUTPUT)
    check_picture(output)
    model = load(_CHECKPOINT.value, settings=settings)
    answer = model.ground(_IMAGES.value, _QUERY.value)
    print(answer.text)
    save_picture(answer.draw(), output)
    count = len(answer.objects)
    print(f"{count} {'box' if count == 1 else 'boxes'} drawn in {output}")


if __name__ == "__main__":
    cli.run(main)
