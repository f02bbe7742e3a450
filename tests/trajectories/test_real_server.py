"""The pipeline and the evaluation against another project's server: `transformers serve`.

It serves an exported small model, trained for a few steps on the stages' answers to six of 16
questions of procedural scenes, so that some answers pass the checks of all three stages and others
don't. `transformers serve` always leaves out special tokens, so the tokens of boxes are made
ordinary ones in the folder's tokenizer. The pipeline sends about 27 requests, the evaluation 7.
"""

import asyncio
import collections
import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from conftest import REPOSITORY, call, train

from configs import sft_tiny, trajectories
from mirg_jax.data.examples import read_examples, to_line
from mirg_jax.grounding.tasks import TRAINING_TASKS
from mirg_jax.scenes import scene_tasks
from mirg_jax.trajectories import build, settings
from mirg_jax.trajectories.journal import PricedReply
from mirg_jax.trajectories.plan import QuestionOutcome

pytestmark = pytest.mark.slow

QUESTIONS, LEARNED, ROWS = 16, 6, 7
# In words that the small tokenizer knows; it splits others into bytes.
FRAMES = {
    "reasoning": "describe $question answer $answer",
    "mapping": "locate $reasoning",
    "reassembly": "list $reasoning $objects",
}
TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% for part in message.content -%}
{{ part.text if part.type == 'text' else '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- endfor %}<|im_end|>
{% endfor -%}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
# The parts of torchvision that Qwen2-VL's processor needs for images; they stand in for it where
# torchvision doesn't load with the installed build of torch.
TORCHVISION = {
    "__init__.py": '__version__ = "0"\n',
    "io.py": """
import enum
import io

import numpy as np
import torch
from PIL import Image, ImageOps

ImageReadMode = enum.Enum("ImageReadMode", "RGB")


def decode_image(data, mode, apply_exif_orientation):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data.numpy().tobytes())))
    return torch.from_numpy(np.array(image.convert(mode.name))).permute(2, 0, 1)
""",
    "transforms/__init__.py": """
import enum

names = "NEAREST_EXACT BOX BILINEAR HAMMING BICUBIC LANCZOS"
InterpolationMode = enum.Enum("InterpolationMode", names)
""",
    "transforms/functional.py": "pil_to_tensor = None\n",
    "transforms/v2/__init__.py": "",
    "transforms/v2/functional.py": """
import torch
from torchvision.transforms import InterpolationMode


def resize(image, size, interpolation, antialias):
    mode = interpolation.name.lower()
    made = torch.nn.functional.interpolate(image.float(), size, mode=mode, antialias=antialias)
    return made.round().clamp(0, 255).to(image.dtype)


def grayscale_to_rgb(image):
    return image.expand(3, -1, -1) if image.shape[0] == 1 else image


def normalize(image, mean, std, inplace):
    mean, std = (torch.as_tensor(value)[:, None, None] for value in (mean, std))
    return (image - mean) / std
""",
}
START = "from transformers.cli.transformers import main; main()"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with questions, rows to evaluate, and prompts."""
    folder = tmp_path_factory.mktemp("data")
    scene_tasks.write_dataset(folder, seed=9, sft=QUESTIONS, rl=0, evaluation=ROWS)
    for stage, frame in FRAMES.items():
        (folder / "prompts" / stage).mkdir(parents=True)
        (folder / "prompts" / stage / "frame.txt").write_text(frame)
        for task in TRAINING_TASKS:
            (folder / "prompts" / stage / f"{task}.txt").write_text("")
    (folder / "prompts/leaks.txt").write_text("as given\n")
    return folder


@pytest.fixture(scope="module")
def model(data, tmp_path_factory):
    """A Hugging Face folder that `transformers serve` can serve."""
    folder = tmp_path_factory.mktemp("model")
    config = trajectories.scenes()
    config.prompts = str(data / "prompts")
    config.scenes.update(seed=9, error=0.0)
    teachers = build.make_teachers(settings.read(config), str(data))
    plan = build.make_plan(settings.read(config), str(data))
    rows = []

    async def ask(request):
        reply = await teachers[request.stage].ask(request)
        name = f"{request.question.id}_{request.stage}"
        what = {"id": name, "question": request.prompt, "response": reply.text}
        rows.append(dataclasses.replace(request.question, **what))
        return PricedReply(reply, 0.0)

    for question in read_examples(data / "sft.json")[0][:LEARNED]:
        asyncio.run(plan.run_stages(QuestionOutcome(question), ask))
    assert len(rows) == 3 * LEARNED
    (folder / "train.jsonl").write_text("".join(map(to_line, rows)))

    recipe = sft_tiny.get_config()
    recipe.cpu_devices = 0
    recipe.num_steps = 50
    recipe.batch_size = len(rows)
    recipe.rows_per_micro_batch = 8
    recipe.data.shapes.lengths = (384,)
    recipe.data.update(train_json=str(folder / "train.jsonl"), image_root=str(data))
    recipe.prompt.image_label = "Image-{n}:"  # as teachers get them
    train(recipe, folder / "run")
    assert not (folder / "run/rejected.jsonl").exists()

    served = folder / "served"
    flags = f"--source={folder / 'run'}", f"--target={served}"
    made = call("convert_checkpoint", "--direction=export", *flags)
    assert made.returncode == 0, made.stderr

    def change(name, how):
        path = served / name
        path.write_text(json.dumps(how(json.loads(path.read_text()))))

    def keep_boxes(tokenizer):
        for token in tokenizer["added_tokens"]:
            token["special"] = token["content"].strip("<|>").split("_")[0] not in ("object", "box")
        return tokenizer

    change("tokenizer.json", keep_boxes)
    change("tokenizer_config.json", lambda c: {**c, "additional_special_tokens": []})
    change("preprocessor_config.json", lambda c: {**c, "processor_class": "Qwen2VLProcessor"})
    (served / "chat_template.jinja").write_text(TEMPLATE)
    return served


@dataclasses.dataclass
class Served:
    """A running server."""

    model: str
    url: str
    log: pathlib.Path

    def answered(self) -> int:
        """Returns the number of requests answered, by the server's log."""
        return self.log.read_text().count('"POST /v1/chat/completions HTTP/1.1" 200')


@contextlib.contextmanager
def serve(model, folder):
    for name in ("fastapi", "uvicorn", "accelerate", "transformers.cli.serve"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"`transformers serve` wants {name}: see requirements-test.txt")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    probe = [sys.executable, "-c", "import torchvision"]
    if subprocess.run(probe, capture_output=True).returncode:
        for name, text in TORCHVISION.items():
            path = folder / "instead/torchvision" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        paths = [str(folder / "instead"), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "server.log"
    flags = ["serve", str(model), "--device=cpu", "--host=127.0.0.1", f"--port={port}"]
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", START, *flags], env=environment, stdout=out, stderr=out
        )
    try:
        deadline = time.monotonic() + 300
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(0.5)
        yield Served(str(model), f"http://127.0.0.1:{port}/v1", log)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def started(model, tmp_path_factory):
    """The server, and a function that stops it."""
    with contextlib.ExitStack() as stack:
        yield stack.enter_context(serve(model, tmp_path_factory.mktemp("server"))), stack.close


@pytest.fixture
def server(started):
    return started[0]


CONFIG = """
from mirg_jax.trajectories import settings


def get_config():
    config = settings.trajectories()
    config.prompts = {prompts!r}
    config.select.update(sft=0, rl=0)
    config.checks.update(answer_iou=0.3, match_iou=0.3, min_words=5)
    config.update(concurrency=4, retries=2)
    for stage in config.stages:
        config.stages[stage] = settings.teacher(
            {model!r}, base_url={url!r}, key_variable="", temperature=0.0, max_tokens=160,
            timeout=300.0, requests_per_minute=0.0, tokens_per_minute=0.0
        )
    {more}
    return config
"""


def command(server, data, folder, more=""):
    """Returns the command line of a run whose stages all ask the server."""
    what = {"prompts": str(data / "prompts"), "model": server.model, "url": server.url}
    folder.parent.mkdir(exist_ok=True)
    config = folder.with_suffix(".py")
    config.write_text(CONFIG.format(**what, more=more))
    return [
        sys.executable, REPOSITORY / "scripts/build_trajectories.py", f"--config={config}",
        f"--input={data / 'sft.json'}", f"--image_root={data}", f"--output_dir={folder}",
    ]  # fmt: skip


def test_a_field_that_the_server_does_not_know_ends_in_one_line(server, data, tmp_path):
    more = 'config.stages["reasoning"].extra_body = {"skip_special_tokens": False}'
    flags = command(server, data, tmp_path / "out", more)
    ended = subprocess.run(flags, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 2
    said = ended.stderr.strip().splitlines()[-1]
    assert "HTTP 422" in said and "skip_special_tokens" in said
    assert (tmp_path / "out/rejected.jsonl").read_text() == ""


def test_predictions_and_scores(server, data, tmp_path):
    bench, out = data / "eval.json", tmp_path / "out"
    before = server.answered()
    ended = call(
        "evaluate_server", "--family=mirg", f"--model={server.model}", f"--base_url={server.url}",
        "--key_variable=", f"--benchmark={bench}", f"--image_root={data}", f"--output_dir={out}",
        "--max_tokens=112", "--extra_body={}", "--concurrency=2", "--timeout=300",
        "--retries=2", timeout=900,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    predictions = lines(out / "predictions.jsonl")
    assert sorted(row["index"] for row in predictions) == list(range(ROWS))
    assert any("<think>" in row["response"] for row in predictions)
    assert server.answered() - before == ROWS
    scored = call(
        "score", f"--benchmark={bench}", f"--predictions={out / 'predictions.jsonl'}",
        f"--output={tmp_path / 'scores.json'}",
    )  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    mine = json.loads((out / "scores.json").read_text())
    other = json.loads((tmp_path / "scores.json").read_text())
    assert mine["rows"] == other["rows"] and mine["overall"] == other["overall"]


# The last test of the file, because it stops the server.
def test_no_question_is_lost_or_asked_about_twice(started, data, tmp_path):
    server, stop = started
    folder = tmp_path / "out"
    flags = command(server, data, folder)
    journal = folder / "replies.jsonl"
    before = server.answered()

    def rows(kind):
        text = journal.read_bytes() if journal.exists() else b""
        found = map(json.loads, text[: text.rfind(b"\n") + 1].splitlines())
        return [row[kind] for row in found if kind in row]

    process = subprocess.Popen(flags, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while len(rows("reply")) < QUESTIONS:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    ended = subprocess.run(flags, capture_output=True, text=True, timeout=1200)
    assert ended.returncode == 0, ended.stderr
    accepted, bad = read_examples(folder / "grounded.jsonl")
    rejected = lines(folder / "rejected.jsonl")
    asked = [example.id for example in read_examples(data / "sft.json")[0]]
    ended_as = [example.id for example in accepted] + [row["id"] for row in rejected]
    assert not bad and sorted(ended_as) == sorted(asked)
    assert all(row["reason"] for row in rejected)
    assert accepted and rejected
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["unfinished"] == 0
    for stage in summary["stages"].values():
        assert stage["prompt_tokens"] > stage["answers"] > 0 < stage["completion_tokens"]
    # Each request is answered once; only those in progress at the kill were sent again.
    replies = rows("reply")
    assert len(replies) == len(set(replies)) >= QUESTIONS + 2 * len(accepted)
    assert not rows("lost") and not rows("failed")
    again = collections.Counter(rows("asked")) - collections.Counter(replies)
    assert sum(again.values()) <= 4
    assert len(replies) <= server.answered() - before <= len(rows("asked"))

    # No request is left to send, so a run needs no server.
    stop()
    outputs = {path.name: path.read_bytes() for path in folder.glob("*.*")}
    ended = subprocess.run(flags, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert outputs == {path.name: path.read_bytes() for path in folder.glob("*.*")}
