"""Time and memory of `scripts/compose.py` on the labels of many photos, and what kills do to it.

Labels are drawn by chance in the form and numbers of COCO's: 80 classes of which some are common
and most rare, 7 objects of 3 classes a photo. Photos are 640x480, plain and of 2 KB, for only their
headers and digests are read: the two tasks that are asked for show photos as they are. COCO's own
files are larger; of those 32 KB are read.

The binary runs in a process of its own that is watched from outside. It is run whole, and once more
with kills (SIGKILL) while labels are read, while files are looked at, between pieces and while the
result is put together; both folders must have the same files.
"""

import collections
import hashlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import PIL
from PIL import Image

from benchmarks import side_by_side

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PHOTOS = 100_000
EXAMPLES = 20_000
TASKS = "common_object", "group_grounding"
SIZE = 640, 480
CLASSES = 80
_WATCHED = 0.02  # seconds between looks at the process
_TICK = os.sysconf("SC_CLK_TCK")


def write_world(folder: pathlib.Path, photos: int) -> int:
    """Writes images/ and instances.json; returns the number of objects."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    plain = io.BytesIO()
    Image.new("RGB", SIZE, (90, 120, 150)).save(plain, "JPEG", optimize=True)
    start, rest = plain.getvalue()[:2], plain.getvalue()[2:]
    share = 1 / np.arange(2, CLASSES + 2)
    share /= share.sum()
    objects = 0
    with open(folder / "instances.json", "w") as file:
        rows = [
            {"id": n, "name": f"thing {_letters(n)}", "supercategory": f"kind {_letters(n % 12)}"}
            for n in range(CLASSES)
        ]
        file.write(f'{{"categories": {json.dumps(rows)},\n"images": [')
        for number in range(photos):
            row = {"id": number, "file_name": f"{number:012d}.jpg"}
            row |= dict(zip(("width", "height"), SIZE, strict=True))
            file.write(f"{',' * bool(number)}\n{json.dumps(row)}")
            # A comment of its own makes it a photo of its own.
            comment = f"{number:012d}".encode()
            marker = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big")
            (folder / "images" / row["file_name"]).write_bytes(start + marker + comment + rest)
        file.write('],\n"annotations": [')
        for number in range(photos):
            shown = rng.choice(CLASSES, 1 + min(rng.poisson(1.9), 9), p=share)
            for each in rng.choice(shown, len(shown) + rng.poisson(4.4)):
                w, h = (SIZE * np.exp(rng.uniform(-3.2, -0.4, 2))).round(2)
                x, y = (rng.uniform(0, (SIZE[0] - w, SIZE[1] - h))).round(2)
                row = {"id": objects, "image_id": number, "category_id": int(each)}
                row |= {"bbox": [float(v) for v in (x, y, w, h)], "iscrowd": 0}
                file.write(f"{',' * bool(objects)}\n{json.dumps(row)}")
                objects += 1
        file.write("]}\n")
    return objects


def _letters(number: int) -> str:
    """Two letters for a number: names that differ by more than a plural."""
    return chr(97 + number // 26) + chr(97 + number % 26)


class _Watched(NamedTuple):
    """What a run took, up to its end or its kill."""

    cpu: float  # seconds of the processor
    index_cpu: float  # of these, until the index of labels was there
    peak: int  # bytes


def _run(
    world: pathlib.Path,
    output: pathlib.Path,
    examples: int,
    kill: Callable[[float], bool] = lambda cpu: False,
) -> _Watched | None:
    """Runs the binary until it ends; returns None if it was killed.

    Args:
      world: the folder of labels and photos.
      output: where it writes.
      examples: how many are asked for.
      kill: tells by the seconds that it took so far whether to kill it now.
    """
    flags = [f"--source=coco={world / 'instances.json'}@images", f"--image_root={world}"]
    flags += [f"--output_dir={output}", f"--sft={examples}", f"--tasks={','.join(TASKS)}"]
    command = [sys.executable, "scripts/compose.py", *flags]
    log = output.parent / "log.txt"
    with open(log, "w") as told:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=told, stderr=told)
    # Not ru_maxrss, which starts at the size of the parent process.
    proc, peak, index_cpu = pathlib.Path(f"/proc/{process.pid}"), 0, None
    index = output / "work/labels.sqlite"
    while True:
        done, status, used = os.wait4(process.pid, os.WNOHANG)
        if done:
            process.returncode = os.waitstatus_to_exitcode(status)
            break
        for line in (proc / "status").read_text().splitlines():
            if line.startswith("VmHWM"):
                peak = int(line.split()[1]) * 1024
        fields = (proc / "stat").read_text().rpartition(")")[2].split()
        cpu = (int(fields[11]) + int(fields[12])) / _TICK
        if index_cpu is None and index.exists():
            index_cpu = cpu
        if kill(cpu):
            process.send_signal(signal.SIGKILL)
            process.wait()
            return None
        time.sleep(_WATCHED)
    if process.returncode:
        raise RuntimeError(log.read_text())
    cpu = used.ru_utime + used.ru_stime
    return _Watched(cpu, cpu if index_cpu is None else index_cpu, peak)


def _kills(
    output: pathlib.Path, whole: _Watched, examples: int
) -> dict[str, Callable[[float], bool]]:
    """Moments to kill a run, in their order."""
    work, pieces = output / "work", -(-examples // 100)

    def at_piece(number: int) -> bool:
        return (work / f"sft_{number:05d}.jsonl").exists()

    return {
        "labels are read": lambda cpu: cpu > 0.25 * whole.index_cpu,
        "files are looked at": lambda cpu: cpu > 0.7 * whole.index_cpu,
        "a third of the pieces": lambda cpu: at_piece(pieces // 3),
        "two thirds of the pieces": lambda cpu: at_piece(2 * pieces // 3),
        "the result is put together": lambda cpu: any(output.glob("sft.jsonl.*.part")),
    }


def _content(folder: pathlib.Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def _rows(output: pathlib.Path) -> dict[str, Any]:
    (file,) = json.loads((output / "manifest.json").read_text())["files"].values()
    made = {task: row["examples"] for task, row in file.items()}
    reasons: collections.Counter[str] = collections.Counter()
    for row in file.values():
        for each in row["draws_left_out"]:
            reasons[each["reason"]] += each["count"]
    return {
        "examples": made,
        "repeated": sum(row["repeated"] for row in file.values()),
        "draws_left_out": dict(reasons),
    }


def run(repeats: int, path: pathlib.Path, photos: int = PHOTOS, examples: int = EXAMPLES) -> None:
    """Measures whole runs `repeats` times, kills one more, compares, and writes JSON.

    Raises:
      RuntimeError: if a run fails, ends before it is killed, or leaves other files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        world = pathlib.Path(scratch) / "world"
        world.mkdir()
        objects = write_world(world, photos)
        whole = [_run(world, world.parent / f"whole{n}", examples) for n in range(repeats)]
        content, killed = _content(world.parent / "whole0"), world.parent / "killed"
        for what, kill in _kills(killed, whole[0], examples).items():
            if _run(world, killed, examples, kill) is not None:
                raise RuntimeError(f"the run ended before it was killed: {what}")
            print(f"killed: {what}", flush=True)
        _run(world, killed, examples)
        for other in (*(world.parent / f"whole{n}" for n in range(1, repeats)), killed):
            found = _content(other)
            if differ := {name for name in content | found if content.get(name) != found.get(name)}:
                raise RuntimeError(f"{other.name} has other files: {min(differ)}, {len(differ)}")
        rates = [examples / (each.cpu - each.index_cpu) for each in whole]
        result = {"case": "compose"} | side_by_side.environment()
        result["versions"] |= {"numpy": np.__version__, "pillow": PIL.__version__}
        result |= {
            "repeats": repeats,
            "photos": photos,
            "objects": objects,
            "label_bytes": (world / "instances.json").stat().st_size,
            "index_cpu_seconds": side_by_side.spread([each.index_cpu for each in whole]),
            "index_cpu_milliseconds_a_photo": side_by_side.spread(
                [1000 * each.index_cpu / photos for each in whole]
            ),
            "asked": examples,
            **_rows(world.parent / "whole0"),
            "examples_a_cpu_second": side_by_side.spread(rates),
            "peak_bytes": side_by_side.spread([each.peak for each in whole]),
            "killed_while": list(_kills(killed, whole[0], examples)),
            "files_compared": len(content),
            "same_files_after_kills": True,
        }
    side_by_side.write(path, result)
