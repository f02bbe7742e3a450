"""Composes multi-image questions from photos with boxes: COCO, YOLO, expressions, tracks, own rows.

    python scripts/compose.py --source=coco=data/instances_val2017.json@val2017 --image_root=data \\
        --output_dir=data/composed --sft=10000 --rl=7000 --evaluation=1000

Writes OUTPUT_DIR/sft.jsonl, rl.jsonl and eval.json, their images, manifest.json and report.html;
see docs/compose.md. Run the same command again to go on.
"""

from absl import flags

from mirg_jax import cli
from mirg_jax.compose import compose, counts
from mirg_jax.compose.sources import READERS, parse_source
from mirg_jax.compose.tasks import COMPOSERS
from mirg_jax.data.images import ImageRoot
from mirg_jax.files import places

_SOURCE = flags.DEFINE_multi_string(
    "source",
    None,
    f"Labels, as KIND=LABELS or KIND=LABELS@FOLDER: KIND is one of {', '.join(READERS)}, FOLDER "
    "what their image paths are relative to, below the image root. May be given several times.",
    required=True,
)
_IMAGE_ROOT = flags.DEFINE_string(
    "image_root", None, "Folder that images are relative to.", required=True
)
_FOLLOW_LINKS = cli.link_flag()
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Folder of the results, which is their image root too.", required=True
)
_SFT = flags.DEFINE_integer("sft", 0, "Examples for SFT, without thoughts.", lower_bound=0)
_RL = flags.DEFINE_integer("rl", 0, "Examples for GRPO.", lower_bound=0)
_EVALUATION = flags.DEFINE_integer(
    "evaluation", 0, "Examples for evaluation, of photos that the others don't show.", lower_bound=0
)
_TASKS = flags.DEFINE_list("tasks", list(COMPOSERS), "Names of the tasks, which take turns.")
_COMPLETE = flags.DEFINE_list(
    "complete",
    [],
    "Kinds of sources, besides coco, yolo and mot, in which every object of a label has a box.",
)
_EVAL_SHARE = flags.DEFINE_float(
    "eval_share", 0.1, "Share of the photos for evaluation.", lower_bound=0.0, upper_bound=0.9
)
_MAX_PIXELS = flags.DEFINE_integer(
    "max_pixels", 401_408, "Upper limit on the pixels of images that are made.", lower_bound=784
)
_SEED = flags.DEFINE_integer("seed", 0, "Random seed.", lower_bound=0)


def main(_):
    cli.output_folder(_OUTPUT_DIR)
    output_dir = places.local(_OUTPUT_DIR.value, "--output_dir")
    settings = compose.Settings(
        sources=tuple(parse_source(each, _COMPLETE.value) for each in _SOURCE.value),
        image_root=ImageRoot(places.local(_IMAGE_ROOT.value, "--image_root"), _FOLLOW_LINKS.value),
        counts={"sft": _SFT.value, "rl": _RL.value, "eval": _EVALUATION.value},
        tasks=tuple(_TASKS.value),
        eval_share=_EVAL_SHARE.value,
        seed=_SEED.value,
        max_pixels=_MAX_PIXELS.value,
    )
    print(counts.table(compose.compose(settings, output_dir)))
    print(f"{output_dir}: done; to look through it, open {output_dir / 'report.html'}")


if __name__ == "__main__":
    cli.run(main)
