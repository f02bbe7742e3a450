"""Reasoning trajectories for grounding questions, by larger models in three stages.

    python scripts/build_trajectories.py --config=configs/trajectories.py:mgrounding \\
        --input=data/MGrounding-630k --image_root=data --output_dir=runs/trajectories --dry_run

Writes OUTPUT_DIR/grounded.jsonl (and the other variants), rejected.jsonl, summary.json and
report.html; docs/trajectories.md says more. Run it again to go on where it ended: no answer that
is there is asked for again.
"""

import json
import pathlib

from absl import flags
from ml_collections import config_flags

from mirg_jax import cli
from mirg_jax.trajectories import build, outputs

_CONFIG = config_flags.DEFINE_config_file("config", None, "Settings, a file of configs/.")
_INPUT = flags.DEFINE_list(
    "input", None, "Questions in MGrounding-630k's layout, a folder or files.", required=True
)
_IMAGE_ROOT = flags.DEFINE_string("image_root", None, "Folder its paths begin in.", required=True)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Where results are written.", required=True)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Ask nothing; say what is left and its price.")
_SHARD = flags.DEFINE_string("shard", None, "i/n: only this share, i from 0.")
_RETRY_FAILED = flags.DEFINE_bool(
    "retry_failed", False, "Ask once more what had no answer the last time."
)
_BATCHES = flags.DEFINE_bool(
    "batches",
    False,
    "Write requests to OUTPUT_DIR/batches/NAME.jsonl for a batch interface instead of sending "
    "them, and take in the answers that lie there as NAME.answers.jsonl.",
)
flags.mark_flag_as_required("config")


def main(_):
    shard = build.Shard.parse(_SHARD.value) if _SHARD.value is not None else None
    what = {
        "source": _INPUT.value,
        "image_root": _IMAGE_ROOT.value,
        "output_dir": pathlib.Path(_OUTPUT_DIR.value),
        "shard": shard,
    }
    if _DRY_RUN.value:
        print(build.dry_run(_CONFIG.value, **what))
        return
    if _BATCHES.value:
        result = build.batch(_CONFIG.value, **what, retry_failed=_RETRY_FAILED.value)
        print(outputs.table(result.summary))
        for file in result.files:
            print(f"to be sent: {file}; its answers: {file.with_suffix('.answers.jsonl')}")
        print(f"{result.waiting} requests wait for answers that were not there")
        if result.capped:
            print(f"{result.capped} requests might cost more than max_dollars leaves")
        return
    result = build.build(_CONFIG.value, **what, retry_failed=_RETRY_FAILED.value)
    print(outputs.table(result.summary))
    if result.stopped:
        print(f"stopped: {result.stopped}; run again to go on")
    print(json.dumps({name: result.summary[name] for name in ("accepted", "rejected")}))


if __name__ == "__main__":
    cli.run(main)
