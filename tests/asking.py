"""Questions about small pictures, and a server to ask."""

import contextlib
import json
import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image

from mirg_jax.grounding.tasks import TRAINING_TASKS

FAKE = pathlib.Path(__file__).parent / "fake_server.py"
KEY = "sk-a-secret-of-the-tests"


def write_questions(
    folder: pathlib.Path, count: int, size: int = 48, detail: int = 6
) -> pathlib.Path:
    """A file of questions in MGrounding-630k's layout, the tasks in turn; the images beside it, no
    two questions with the same two."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for n in range(60):
        pixels = rng.integers(0, 256, (detail, detail, 3), np.uint8)
        Image.fromarray(pixels).resize((size, size)).save(folder / f"images/{n}.jpg")
    rows = []
    for n in range(count):
        x, y = rng.integers(0, 400, 2)
        box = f"<|box_start|>({x},{y}),({x + 300},{y + 500})<|box_end|>"
        images = [f"images/{n % 60}.jpg", f"images/{(n // 60 + n + 1) % 60}.jpg"]
        asked = f"<image>\n<image>\nWhere in the second image is thing {n}?"
        said = [{"from": "human", "value": asked}, {"from": "gpt", "value": box}]
        name = f"{TRAINING_TASKS[n % 7]}_{n}"
        rows.append({"id": name, "images": images, "conversations": said, "type": ""})
    path = folder / "questions.json"
    path.write_text(json.dumps(rows))
    return path


class Server:
    """A running server: its address, and what it was asked."""

    def __init__(self, log: pathlib.Path, port: int):
        self.url = f"http://127.0.0.1:{port}/v1"
        self._log = log

    def requests(self) -> list[tuple[str, str]]:
        """Key and fate of each request so far."""
        return [tuple(line.split("\t")[:2]) for line in self._log.read_text().splitlines()]

    def times(self) -> list[float]:
        """When each request came."""
        return [float(line.split("\t")[2]) for line in self._log.read_text().splitlines()]


@contextlib.contextmanager
def serve(log: pathlib.Path, *flags: str):
    command = [sys.executable, FAKE, log, *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield Server(log, int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()
