"""Compares two runs on a benchmark: changes by task with a paired test, and changed rows.

    python scripts/compare.py --before=runs/sft/eval/scores.json \\
        --after=runs/grpo/eval/scores.json --output=changes.json

Runs are given as scores.json files of scripts/evaluate.py, evaluate_server.py or score.py, scored
by the same protocol on the same rows of one benchmark. The output file lists the rows gained and
lost.
"""

import dataclasses
import json
import sys

from absl import flags

from mirg_jax import cli
from mirg_jax.files import outputs
from mirg_jax.mig_bench import compare
from mirg_jax.mig_bench.tables import aligned

_BEFORE = flags.DEFINE_string("before", None, "Path of the first run's scores.json.", required=True)
_AFTER = flags.DEFINE_string("after", None, "Path of the second run's scores.json.", required=True)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Path of a JSON file to write the changes to; by default none is written."
)


def main(_):
    output = cli.output_file(_OUTPUT) if _OUTPUT.value else None
    before, after = (compare.read_scores(path.value) for path in (_BEFORE, _AFTER))
    for path, run in ((_BEFORE.value, before), (_AFTER.value, after)):
        if not run.get("benchmark_sha256"):
            print(
                f"{path}: an earlier version made it without recording its benchmark, so it isn't "
                "checked that both are of the same; to have it checked, make it again with "
                "scripts/score.py",
                file=sys.stderr,
            )
    if compare.have_other_images(before, after):
        print(
            "the two were asked about images of other content, or turned otherwise (images in the "
            "two files), so they differ in more than their models",
            file=sys.stderr,
        )
    changes = compare.compare(before, after)
    if output:
        text = json.dumps({k: dataclasses.asdict(c) for k, c in changes.items()}, indent=1)
        outputs.write_text(output, text + "\n", "--output")
    print(aligned(compare.table_cells(changes), left=1))
    print("gained, lost: rows hit by one run alone; p: exact McNemar test; 95 %: of the difference")


if __name__ == "__main__":
    cli.run(main)
