"""Evaluates a model on a benchmark in MIG-Bench's format: predictions, scores and a report.

    python scripts/evaluate.py --config=configs/grpo_qwen2_vl_7b.py --checkpoint=runs/grpo \\
        --benchmark=MIG_data.json --image_root=MIG-Bench --output_dir=runs/grpo/eval

Writes predictions.jsonl, scores.json, rejected.jsonl and report.html. Predictions are written batch
by batch; run the same command again to continue an interrupted evaluation.
"""

from absl import flags
from ml_collections import config_flags

from mirg_jax import cli
from mirg_jax.evaluation import evaluate
from mirg_jax.evaluation.results import show
from mirg_jax.runs.settings import read
from mirg_jax.sharding import processes

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe: a Python file in configs/ that returns the settings."
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "Model to evaluate: a run's folder, one of its checkpoints, RUN/best, a Hugging Face folder or "
    "a hub name.",
    required=True,
)
_BENCHMARK = flags.DEFINE_string(
    "benchmark", None, "Path of the benchmark, a JSON file in MIG-Bench's format.", required=True
)
_IMAGE_ROOT = flags.DEFINE_string(
    "image_root", None, "Folder that the benchmark's image paths are relative to.", required=True
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Folder where the results are written.", required=True
)
_PROTOCOL = flags.DEFINE_enum(
    "protocol",
    "answer",
    ["answer", "authors"],
    "Box that is scored. answer: the box inside <answer>. authors: the first box in the response, "
    "as in the evaluation of the benchmark's authors.",
)
_LIMIT = flags.DEFINE_integer(
    "limit",
    0,
    "Number of rows to evaluate, drawn from all tasks in proportion; 0: all.",
    lower_bound=0,
)
flags.mark_flag_as_required("config")


def main(_):
    scores = evaluate.run(
        read(_CONFIG.value),
        checkpoint=_CHECKPOINT.value,
        benchmark=_BENCHMARK.value,
        image_root=_IMAGE_ROOT.value,
        output_dir=cli.output_folder(_OUTPUT_DIR),
        protocol=_PROTOCOL.value,
        limit=_LIMIT.value,
    )
    if processes.is_first():
        show(_CHECKPOINT.value, scores)


if __name__ == "__main__":
    cli.run(main)
