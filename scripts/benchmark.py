"""Measures one case beside its reference, alternately in one run, and writes JSON.

    python scripts/benchmark.py --case=sft_step

Cases: sft_step and generate, the small model beside transformers and torch on this machine.
Needs requirements-test.txt.
"""

import json
import pathlib

from absl import flags

from benchmarks.side_by_side import measure, write_result
from benchmarks.small import CASES
from mirg_jax import cli

_CASE = flags.DEFINE_enum("case", None, sorted(CASES), "What to measure.", required=True)
_MODEL = flags.DEFINE_string("model", "assets/small_base", "Hugging Face folder.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed runs of each way, after a warm-up.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", "runs/benchmarks", "Where the JSON is written.")


def main(_):
    ways, facts = CASES[_CASE.value](_MODEL.value)
    seconds = measure(ways, _REPEATS.value)
    facts = {name: fact() if callable(fact) else fact for name, fact in facts.items()}
    path = pathlib.Path(_OUTPUT_DIR.value) / f"{_CASE.value}.json"
    print(json.dumps(write_result(path, _CASE.value, seconds, **facts), indent=1))


if __name__ == "__main__":
    cli.run(main)
