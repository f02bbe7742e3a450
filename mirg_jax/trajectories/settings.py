"""Every setting of the trajectory construction, with its default: the paper's teachers."""

from ml_collections import ConfigDict

from mirg_jax.grounding.tasks import TRAINING_TASKS


def teacher(model: str, **changes) -> ConfigDict:
    """A stage's teacher, by default GPT-4o's maker's server with its prices of late 2024."""
    config = ConfigDict(
        {
            "teacher": "openai",  # openai: any server of that kind; scenes; model: our own, here
            "model": model,  # name on the server; for "model", what scripts/ground.py takes
            "base_url": "",  # "": the environment's OPENAI_BASE_URL, or OpenAI's own
            # The environment variable that holds the key, never the key; "": a server without keys.
            "key_variable": "OPENAI_API_KEY",
            "temperature": 1.0,  # 0: always the likeliest, and no second try
            "max_tokens": 2048,  # of an answer; 0: not said
            "extra_body": {},  # more fields of the request, as the server has them
            "recipe": {},  # for "model": as scripts/evaluate.py takes it; {}: the model's own
            "timeout": 180.0,  # seconds, for the whole of an answer
            "requests_per_minute": 500.0,  # 0: no limit
            "tokens_per_minute": 450_000.0,  # 0: no limit
            # Dollars a million tokens, and the tokens an answer and an image are thought to take
            # before any was measured.
            "prompt_price": 2.5,
            "completion_price": 10.0,
            "expected_tokens": 400,
            "tokens_per_image": 765,
        }
    )
    config.update(changes)
    return config


def trajectories() -> ConfigDict:
    """The paper's: 10k + 7k questions; GPT-4o, Qwen2-VL-72B on a server of one's own, GPT-4o."""
    return ConfigDict(
        {
            "seed": 0,
            "select": {
                "sft": 10_000,  # 0: all, in the file's order, and none for RL
                "rl": 7_000,
                "weights": dict.fromkeys(TRAINING_TASKS, 1.0),  # shares of the tasks; open
                # A benchmark's file, whose images are not used, and its image root (see select.py).
                "exclude": "",
                "exclude_root": "",
            },
            "prompts": "",  # folder of prompts; "": mirg_jax/trajectories/prompts
            "tries": 3,  # answers of each stage before a question is given up
            "concurrency": 64,  # requests at a time
            "retries": 8,  # of a request that had no answer, before it is given up
            "backoff": 1.0,  # seconds before the first retry; doubled each time, up to a minute
            "max_dollars": 0.0,  # what all runs into a folder may cost together; 0: no cap
            "max_pixels": 1024 * 1024,  # of an image as it is sent
            "checks": {  # mirg_jax/trajectories/checks.py
                "answer_iou": 0.9,
                "match_iou": 0.5,
                "truth_boxes": True,
                "min_words": 15,
                "max_words": 400,
                "max_objects": 16,
            },
            "stages": {
                "reasoning": teacher("gpt-4o"),
                "mapping": teacher(
                    "Qwen/Qwen2-VL-72B-Instruct",
                    base_url="http://localhost:8000/v1",
                    key_variable="",
                    # The answer is made of special tokens, which vLLM would leave out.
                    extra_body=ConfigDict({"skip_special_tokens": False}),
                    requests_per_minute=0.0,
                    tokens_per_minute=0.0,
                    prompt_price=0.0,
                    completion_price=0.0,
                    expected_tokens=250,
                    tokens_per_image=1369,
                ),
                "reassembly": teacher("gpt-4o", expected_tokens=600),
            },
            "scenes": {"seed": 0, "error": 0.0},  # of the embedded teacher, scene_teacher.py
            "page_examples": 60,  # trajectories shown in report.html
        }
    )
