"""Evaluations of a fake server: benchmarks, what models say, commands."""

import contextlib
import json
import random
import sys

import numpy as np
import pytest
from answer_forms import SAID
from asking import KEY, serve
from conftest import REPOSITORY
from PIL import Image

from mirg_jax.evaluation import server
from mirg_jax.grounding.tasks import MIG_BENCH_TASKS
from mirg_jax.mig_bench import families
from mirg_jax.mig_bench.benchmark import load_benchmark
from mirg_jax.mig_bench.families import FAMILIES

TRANSPORT = "429,429 wait,500,slow,cut,malformed,text,null,empty"
ASIDE = ("", "It is in the second image. ", "Sure! ")


def write_benchmark(folder, count):
    """Rows of all tasks in turn about "thing 0", "thing 1", …, with images of several sizes."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    names = []
    for n, size in enumerate([(100, 60), (300, 80), (60, 150), (97, 211)] * 2):
        pixels = rng.integers(0, 256, (6, 6, 3), np.uint8)
        names.append(f"images/{n}.jpg")
        Image.fromarray(pixels).resize(size).save(folder / names[-1])
    rows = []
    for n in range(count):
        task = list(MIG_BENCH_TASKS)[n % len(MIG_BENCH_TASKS)]
        x1, y1 = rng.uniform(0, 0.4, 2).round(3)
        marked = "(<|box_start|>(58,305),(495,743)<|box_end|>)" * (task == "object_tracking")
        asked = f"For what the first image marks{marked}, find thing {n} in the second image. "
        answer = [float(x1), float(y1), round(x1 + 0.5, 3), round(y1 + 0.4, 3)]
        images = [names[n % 8], names[(n + 1 + n % 3) % 8]]
        info = "It is in the second image." * (task == "group_grounding")
        rows.append({"task": task, "images": images, "question": asked, "answer": answer,
                     "additional_info": info, "need_format": True})  # fmt: skip
    path = folder / "bench.json"
    path.write_text(json.dumps(rows))
    return path


def answers_of(name, bench):
    """What a model of the family says to each row: mostly near, at times nothing or nonsense."""
    rows, rng, said = load_benchmark(bench), random.Random(1), []
    for n, row in enumerate(rows):
        if n % 10 == 7:
            said.append("I cannot see any such thing.")
            continue
        box = [min(max(round(1000 * v) + rng.randint(-90, 90), 0), 1000) for v in row.answer]
        with Image.open(bench.parent / row.images[1]) as image:
            size = families.size_given(image.size, families.MAX_PIXELS)
        first, _ = SAID[name](box, size)
        text = ASIDE[n % 3] * (FAMILIES[name].numbers != "grammar") + first
        said.append(text + (" or " + SAID[name]([1, 2, 30, 40], size)[0]) * (n % 10 == 4))
    return said


@pytest.fixture
def fake(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with contextlib.ExitStack() as stack:

        def start(answers, *flags):
            number = len(list(tmp_path.glob("server*.log")))
            file = tmp_path / f"answers{number}.json"
            file.write_text(json.dumps(answers))
            log = tmp_path / f"server{number}.log"
            return stack.enter_context(serve(log, f"--answers={file}", *flags))

        yield start


def ask(name, url, bench, folder, *, protocol="answer", limit=0, progress=False, **changes):
    how = {"base_url": url, "timeout": 30.0, "backoff": 0.01} | changes
    return server.run(
        name,
        server.Server("some/model", **how),
        benchmark=str(bench),
        image_root=str(bench.parent),
        output_dir=folder,
        protocol=protocol,
        limit=limit,
        progress=progress,
    )


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def flags_for(name, url, bench, folder, *more):
    return [
        f"--family={name}", "--model=some/model", f"--base_url={url}", f"--benchmark={bench}",
        f"--image_root={bench.parent}", f"--output_dir={folder}", "--timeout=1", "--backoff=0.01",
        *more,
    ]  # fmt: skip


def command(*flags):
    return [sys.executable, REPOSITORY / "scripts/evaluate_server.py", *flags]


def answered(folder):
    path = folder / "predictions.jsonl"
    text = path.read_bytes() if path.exists() else b""
    return {json.loads(line)["index"] for line in text[: text.rfind(b"\n") + 1].splitlines()}
