"""Asks a model about some images, prints its answer and draws the boxes.

    python scripts/ground.py --checkpoint=runs/demo/grpo --images=a.png,b.png \\
        --query="Where is the red circle?" --output=out.png

The images are read and the prompt is worded as in the run's own config; --config gives another.
"""

from absl import flags
from ml_collections import config_flags

from mirg_jax import cli
from mirg_jax.inference.predictor import load
from mirg_jax.runs.settings import read

_CONFIG = config_flags.DEFINE_config_file("config", None, "Another recipe than the run's own.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run's folder, a checkpoint, or a Hugging Face folder.", required=True
)
_IMAGES = flags.DEFINE_list("images", None, "Paths, separated by commas, in order.", required=True)
_QUERY = flags.DEFINE_string("query", None, "The question.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "PNG with the boxes drawn in.", required=True)


def main(_):
    model = load(_CHECKPOINT.value, settings=read(_CONFIG.value) if _CONFIG.value else None)
    answer = model.ground(_IMAGES.value, _QUERY.value)
    print(answer.text)
    answer.draw().save(_OUTPUT.value)
    print(f"{len(answer.objects)} boxes drawn in {_OUTPUT.value}")


if __name__ == "__main__":
    cli.run(main)
