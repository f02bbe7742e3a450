"""Draws pictures of the demo's small world, with labels in COCO's form, for scripts/compose.py.

    python scripts/draw_scenes.py --output_dir=data/scenes --pictures=2000

Writes OUTPUT_DIR/images and OUTPUT_DIR/instances.json; see docs/compose.md.
"""

from absl import flags

from mirg_jax import cli
from mirg_jax.files import places
from mirg_jax.scenes.labelled import write_labelled

_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Folder of the pictures and labels.", required=True
)
_PICTURES = flags.DEFINE_integer("pictures", 2000, "Number of pictures.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Random seed.", lower_bound=0)


def main(_):
    cli.output_folder(_OUTPUT_DIR)
    folder = places.local(_OUTPUT_DIR.value, "--output_dir")
    write_labelled(folder, seed=_SEED.value, count=_PICTURES.value)
    print(folder / "instances.json")


if __name__ == "__main__":
    cli.run(main)
