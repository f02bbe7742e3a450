"""Evaluates a model on a benchmark in MIG-Bench's format: predictions, scores and a report.

    python scripts/evaluate.py --config=configs/grpo_qwen2_vl_7b.py --checkpoint=runs/grpo \\
        --benchmark=MIG_data.json --image_root=MIG-Bench --output_dir=runs/grpo/eval

Writes predictions.jsonl (as it goes: run again to continue), scores.json, rejected.jsonl and
report.html. --checkpoint is a run's folder, one of its checkpoints, or a Hugging Face folder.
"""

import json
import pathlib

from absl import flags
from ml_collections import config_flags

from mirg_jax import cli
from mirg_jax.evaluation import evaluate
from mirg_jax.mig_bench.tables import format_table
from mirg_jax.runs.settings import read
from mirg_jax.sharding import processes

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, a file of configs/.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The model to evaluate.", required=True)
_BENCHMARK = flags.DEFINE_string("benchmark", None, "MIG-Bench JSON file.", required=True)
_IMAGE_ROOT = flags.DEFINE_string("image_root", None, "Folder its paths begin in.", required=True)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Where results are written.", required=True)
_PROTOCOL = flags.DEFINE_enum(
    "protocol",
    "answer",
    ["answer", "authors"],
    "answer: the box of <answer>. authors: the first box anywhere, as the benchmark's authors do.",
)
_LIMIT = flags.DEFINE_integer("limit", 0, "Only so many rows, spread over the file; 0 for all.")
flags.mark_flag_as_required("config")


def main(_):
    scores = evaluate.run(
        read(_CONFIG.value),
        checkpoint=_CHECKPOINT.value,
        benchmark=_BENCHMARK.value,
        image_root=_IMAGE_ROOT.value,
        output_dir=pathlib.Path(_OUTPUT_DIR.value),
        protocol=_PROTOCOL.value,
        limit=_LIMIT.value,
    )
    if not processes.is_first():
        return
    print(format_table({_CHECKPOINT.value: scores}))
    print(json.dumps({"acc": scores.overall.accuracy[0.5], "n": scores.overall.n}))


if __name__ == "__main__":
    cli.run(main)
