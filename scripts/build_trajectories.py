"""Has larger models write reasoning trajectories for grounding questions, in three stages.

    python scripts/build_trajectories.py --config=configs/trajectories.py:mgrounding \\
        --input=data/MGrounding-630k --image_root=data --output_dir=runs/trajectories --dry_run

Writes OUTPUT_DIR/grounded.jsonl (and the other variants), rejected.jsonl, summary.json and
report.html; see docs/trajectories.md. Run the same command again to resume: a request that was
answered is never sent again.
"""

import json

from absl import flags
from ml_collections import config_flags

from mirg_jax import cli
from mirg_jax.trajectories import build, outputs, settings

_CONFIG = config_flags.DEFINE_config_file("config", None, "Settings: a file of configs/.")
_INPUT = flags.DEFINE_list(
    "input",
    None,
    "Questions in MGrounding-630k's layout: a folder, or files separated by commas.",
    required=True,
)
_IMAGE_ROOT = flags.DEFINE_string(
    "image_root", None, "Folder that the images' paths are relative to.", required=True
)
_IMAGES = cli.image_flags()
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder of the results.", required=True)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Only estimate the requests that are left and their price; send none."
)
_SHARD = flags.DEFINE_string(
    "shard", None, "i/n: only part i, from 0, of n parts of the questions."
)
_RETRY_FAILED = flags.DEFINE_bool(
    "retry_failed", False, "Send requests again that were given up in earlier runs."
)
_BATCHES = flags.DEFINE_bool(
    "batches",
    False,
    "For a batch interface: write requests to OUTPUT_DIR/batches/NAME.jsonl instead of sending "
    "them, and read the answers in NAME.answers.jsonl beside them.",
)
flags.mark_flag_as_required("config")


def main(_):
    what = {
        "source": _INPUT.value,
        "image_root": _IMAGES(_IMAGE_ROOT.value),
        "output_dir": cli.output_folder(_OUTPUT_DIR),
        "shard": build.Shard.parse(_SHARD.value) if _SHARD.value is not None else None,
    }
    how = settings.read(_CONFIG.value)
    if _DRY_RUN.value:
        print(build.dry_run(how, **what))
        return
    if _BATCHES.value:
        result = build.batch(how, **what, retry_failed=_RETRY_FAILED.value)
        print(outputs.yield_table(result.summary))
        for file in result.files:
            print(f"submit {file}, and put its answers into {file.with_suffix('.answers.jsonl')}")
        print(f"{result.waiting} requests of earlier rounds have no answer yet")
        for file in result.unanswered:
            print(f"{file} has no {file.with_suffix('.answers.jsonl').name} beside it yet")
        if result.capped:
            print(f"{result.capped} requests were held back: they might exceed max_dollars")
        return
    result = build.build(how, **what, retry_failed=_RETRY_FAILED.value)
    print(outputs.yield_table(result.summary))
    if result.stopped:
        print(f"stopped: {result.stopped}; run again to go on")
    print(json.dumps({name: result.summary[name] for name in ("accepted", "rejected")}))
    outputs.check_some_accepted(result.summary, result.folder)


if __name__ == "__main__":
    cli.run(main)
