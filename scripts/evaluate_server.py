"""Evaluates a model behind a server that speaks OpenAI's chat completions, as evaluate.py does.

    python scripts/evaluate_server.py --family=qwen2_vl --model=Qwen/Qwen2-VL-7B-Instruct \\
        --base_url=http://localhost:8000/v1 --key_variable= \\
        --benchmark=MIG_data.json --image_root=MIG-Bench --output_dir=runs/qwen2_vl/eval

The family says how questions are asked and what the numbers of answers mean; docs/evaluation.md has
the list. Writes predictions.jsonl (as it goes: run again to continue), scores.json, report.html,
errors.jsonl (every request that had no answer, and why) and rejected.jsonl (the rows that have none
in the end).
"""

import json
import pathlib

from absl import flags

from mirg_jax import cli
from mirg_jax.errors import ConfigError
from mirg_jax.evaluation import server
from mirg_jax.mig_bench import families
from mirg_jax.mig_bench.tables import format_table

_FAMILY = flags.DEFINE_enum(
    "family", None, sorted(families.FAMILIES), "Of the model.", required=True
)
_MODEL = flags.DEFINE_string("model", None, "The model's name on the server.", required=True)
_BASE_URL = flags.DEFINE_string(
    "base_url", "", "The server; by default the environment's OPENAI_BASE_URL, or OpenAI's own."
)
_KEY_VARIABLE = flags.DEFINE_string(
    "key_variable",
    "OPENAI_API_KEY",
    "The environment variable that holds the key; empty for a server without keys.",
)
_BENCHMARK = flags.DEFINE_string("benchmark", None, "MIG-Bench JSON file.", required=True)
_IMAGE_ROOT = flags.DEFINE_string("image_root", None, "Folder its paths begin in.", required=True)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Where results are written.", required=True)
_PROTOCOL = flags.DEFINE_enum(
    "protocol",
    "answer",
    ["answer", "authors"],
    "answer: the box of <answer>. authors: prompt and first box as the benchmark's authors do.",
)
_LIMIT = flags.DEFINE_integer("limit", 0, "Only so many rows, spread over the file; 0 for all.")
_CONCURRENCY = flags.DEFINE_integer("concurrency", 16, "Requests under way at a time.")
_RETRIES = flags.DEFINE_integer("retries", 8, "Of a request that had no answer.", lower_bound=0)
_BACKOFF = flags.DEFINE_float(
    "backoff", 1.0, "Seconds before the first retry; doubled each time.", lower_bound=0.0
)
_TIMEOUT = flags.DEFINE_float("timeout", 180.0, "Seconds, for the whole of an answer.")
_RATE = flags.DEFINE_float(
    "requests_per_minute", 0.0, "At most so many; 0 for no limit.", lower_bound=0.0
)
_MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", 0, "Of an answer; 0 for the family's.", lower_bound=0
)
_MAX_PIXELS = flags.DEFINE_integer(
    "max_pixels",
    families.MAX_PIXELS,
    "Of an image as it is sent. A server that makes images smaller still must be told the same.",
    lower_bound=families.MIN_PIXELS,
)
_EXTRA_BODY = flags.DEFINE_string(
    "extra_body", None, "More fields of a request, as a JSON object, instead of the family's."
)


def _extra_body():
    if _EXTRA_BODY.value is None:
        return None
    try:
        fields = json.loads(_EXTRA_BODY.value)
    except ValueError as error:
        raise ConfigError(f"--extra_body: not valid JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ConfigError('--extra_body: expected a JSON object, such as {"top_k": 1}')
    return fields


def main(_):
    scores = server.run(
        _FAMILY.value,
        server.Server(
            model=_MODEL.value,
            base_url=_BASE_URL.value,
            key_variable=_KEY_VARIABLE.value,
            timeout=_TIMEOUT.value,
            concurrency=_CONCURRENCY.value,
            retries=_RETRIES.value,
            backoff=_BACKOFF.value,
            requests_per_minute=_RATE.value,
            max_tokens=_MAX_TOKENS.value,
            max_pixels=_MAX_PIXELS.value,
            extra_body=_extra_body(),
        ),
        benchmark=_BENCHMARK.value,
        image_root=_IMAGE_ROOT.value,
        output_dir=pathlib.Path(_OUTPUT_DIR.value),
        protocol=_PROTOCOL.value,
        limit=_LIMIT.value,
    )
    print(format_table({_MODEL.value: scores}))
    print(json.dumps({"acc": scores.overall.accuracy[0.5], "n": scores.overall.n}))


if __name__ == "__main__":
    cli.run(main)
