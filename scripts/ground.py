"""Asks a model about some images, prints its answer and draws the boxes.

    python scripts/ground.py --checkpoint=runs/demo/grpo --images=a.png,b.png \\
        --query="Where is the red circle?" --output=out.png

The images are read and the prompt is worded as in the run's own config; --config gives another.
"""

from absl import flags
from ml_collections import config_flags

from mirg_jax import cli
from mirg_jax.grounding.grammar import parse_response
from mirg_jax.inference.ask import ask
from mirg_jax.inference.pictures import draw_objects
from mirg_jax.training import setup

_CONFIG = config_flags.DEFINE_config_file("config", None, "Another recipe than the run's own.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run's folder, a checkpoint, or a Hugging Face folder.", required=True
)
_IMAGES = flags.DEFINE_list("images", None, "Paths, separated by commas, in order.", required=True)
_QUERY = flags.DEFINE_string("query", None, "The question.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "PNG with the boxes drawn in.", required=True)


def main(_):
    config = _CONFIG.value or setup.config_of(_CHECKPOINT.value)
    response = ask(
        config, checkpoint=_CHECKPOINT.value, images=_IMAGES.value, question=_QUERY.value
    )
    print(response)
    found = parse_response(response, len(_IMAGES.value)).objects
    draw_objects(_IMAGES.value, found).save(_OUTPUT.value)
    print(f"{len(found)} boxes drawn in {_OUTPUT.value}")


if __name__ == "__main__":
    cli.run(main)
