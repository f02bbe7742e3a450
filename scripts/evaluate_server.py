"""Evaluates a model on a server with OpenAI's chat completions API, as evaluate.py does.

    python scripts/evaluate_server.py --family=qwen2_vl --model=Qwen/Qwen2-VL-7B-Instruct \\
        --base_url=http://localhost:8000/v1 --key_variable= \\
        --benchmark=MIG_data.json --image_root=MIG-Bench --output_dir=runs/qwen2_vl/eval

The model family determines the prompt and the coordinates of boxes; docs/evaluation.md lists the
families. Writes predictions.jsonl, scores.json, report.html, errors.jsonl (failed requests with the
reason) and rejected.jsonl (rows without an answer at the end). Predictions are written as they
arrive; run the same command again to continue.
"""

import json

from absl import flags

from mirg_jax import cli
from mirg_jax.chat.client import check_extra_body
from mirg_jax.errors import ConfigError
from mirg_jax.evaluation import server
from mirg_jax.evaluation.results import show
from mirg_jax.mig_bench import families

_FAMILY = flags.DEFINE_enum(
    "family",
    None,
    sorted(families.FAMILIES),
    "Family of the model, which determines the prompt and the coordinates of boxes.",
    required=True,
)
_MODEL = flags.DEFINE_string("model", None, "Name of the model on the server.", required=True)
_BASE_URL = flags.DEFINE_string(
    "base_url",
    "",
    "URL of the server's API; by default the environment's OPENAI_BASE_URL, or OpenAI's API.",
)
_KEY_VARIABLE = flags.DEFINE_string(
    "key_variable",
    "OPENAI_API_KEY",
    "Name of the environment variable with the API key; empty for a server without keys.",
)
_BENCHMARK = flags.DEFINE_string(
    "benchmark", None, "Path of the benchmark, a JSON file in MIG-Bench's format.", required=True
)
_IMAGE_ROOT = flags.DEFINE_string(
    "image_root", None, "Folder that the benchmark's image paths are relative to.", required=True
)
_IMAGES = cli.image_flags()
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Folder where the results are written.", required=True
)
_PROTOCOL = flags.DEFINE_enum(
    "protocol",
    "answer",
    ["answer", "authors"],
    "Prompt, and box that is scored. answer: the box inside <answer>. authors: prompt and first "
    "box in the response, as in the evaluation of the benchmark's authors.",
)
_LIMIT = flags.DEFINE_integer(
    "limit",
    0,
    "Number of rows to evaluate, drawn from all tasks in proportion; 0: all.",
    lower_bound=0,
)
_CONCURRENCY = flags.DEFINE_integer(
    "concurrency", 16, "Maximum number of concurrent requests.", lower_bound=1
)
_RETRIES = flags.DEFINE_integer(
    "retries", 8, "Maximum number of retries of a failed request.", lower_bound=0
)
_BACKOFF = flags.DEFINE_float(
    "backoff", 1.0, "Seconds before the first retry, doubled for each further one.", lower_bound=0.0
)
_TIMEOUT = flags.DEFINE_float(
    "timeout", 180.0, "Seconds until a request without answer fails.", lower_bound=0.001
)
_RATE = flags.DEFINE_float(
    "requests_per_minute",
    0.0,
    "Maximum number of requests per minute; 0: no limit.",
    lower_bound=0.0,
)
_MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens",
    0,
    "Maximum length of an answer in tokens; 0: the family's default.",
    lower_bound=0,
)
_MAX_PIXELS = flags.DEFINE_integer(
    "max_pixels",
    families.MAX_PIXELS,
    "Maximum number of pixels per image; larger images are shrunk before sending. If the server "
    "has a lower limit, give the same value here.",
    lower_bound=families.MIN_PIXELS,
)
_EXTRA_BODY = flags.DEFINE_string(
    "extra_body",
    None,
    "Additional fields of a request as a JSON object; by default those of the family.",
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
    check_extra_body(fields, "--extra_body")
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
        image_root=_IMAGES(_IMAGE_ROOT.value),
        output_dir=cli.output_folder(_OUTPUT_DIR),
        protocol=_PROTOCOL.value,
        limit=_LIMIT.value,
    )
    show(_MODEL.value, scores)


if __name__ == "__main__":
    cli.run(main)
