"""Checkpoints onto many devices and into many processes: the values, and what each one reads."""

import json
import os
import socket
import subprocess
import sys

import pytest
from conftest import REPOSITORY


@pytest.mark.parametrize("processes, devices", [(1, 8), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_each_device_gets_its_part_and_each_process_reads_no_more(tiny_model, processes, devices):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [
        subprocess.Popen(
            [
                sys.executable,
                REPOSITORY / "tests/weights/load_worker.py",
                *map(str, (tiny_model, processes, index, port, devices)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
        for index in range(processes)
    ]
    for worker in workers:
        out, errors = worker.communicate(timeout=240)
        assert worker.returncode == 0, errors
        results = json.loads(out.splitlines()[-1])
        assert len(results) >= 4
        for name, counts in results.items():
            stored = counts["parts"] * (2 if "bfloat16" in name else 1)  # the file holds float32
            assert counts["read"] == stored, name
            assert counts["host"] == counts["largest"], name
