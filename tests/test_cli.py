"""How every binary ends: status 2 and one line for bad input, a traceback for a bug of ours."""

import os
import pathlib
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from mirg_jax import cli

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

BINARY = """
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from absl import flags
from ml_collections import config_flags
from mirg_jax import cli
from mirg_jax.errors import ConfigError, DataError

_CONFIG = config_flags.DEFINE_config_file("config")
_RAISE = flags.DEFINE_string("raise", None, "")
_HANG = flags.DEFINE_bool("hang", False, "")
_SEVERAL = flags.DEFINE_bool("several", False, "")

def stand_for_several():
    # The other process of the run comes to no end.
    import atexit, sys, types
    distributed = types.SimpleNamespace(is_initialized=lambda: True, shutdown=Event().wait)
    sys.modules["jax"] = types.SimpleNamespace(distributed=distributed)
    atexit.register(distributed.shutdown)  # as JAX does
    cli._LEAVE_SECONDS = 0.5

def main(_):
    if _HANG.value:
        cli._LAST_SECONDS = 0.5
        ThreadPoolExecutor().submit(Event().wait)
    if _SEVERAL.value:
        stand_for_several()
    if _RAISE.value:
        raise {"data": DataError, "config": ConfigError, "bug": KeyError,
                "stop": KeyboardInterrupt, "exit": lambda _: SystemExit(143),
                "lost": lambda _: ValueError("UNKNOWN: Gloo AllGather failed:\\n Connection reset"),
                }[_RAISE.value](
            "rows.json row 3:\\n no images")
    print(_CONFIG.value.path or _CONFIG.value.seed)

if __name__ == "__main__":
    cli.run(main)
"""
CONFIG = """
import ml_collections
from mirg_jax.errors import ConfigError
def get_config(argument="one"):
    if argument != "one":
        raise ConfigError(f"good.py: no number {argument!r};\\n there is one")
    return ml_collections.ConfigDict({"seed": 1, "path": "", "sizes": (1,)})
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "binary.py").write_text(BINARY)
    (tmp_path / "good.py").write_text(CONFIG)

    def run(*flags, stdout=subprocess.PIPE, **variables):
        return subprocess.run(
            [sys.executable, "binary.py", *flags],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | variables,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


def test_flags_reach_main(run):
    result = run("--config=good.py", "--config.seed=7")
    assert (result.returncode, result.stdout, result.stderr) == (0, "7\n", "")


def test_a_tilde_reaches_main_as_the_home_folder(run):
    result = run("--config=good.py", "--config.path=~/a")
    assert result.stdout == os.path.expanduser("~/a") + "\n"


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = ConfigDict({"data": {"json": ("~/a.json", "b~"), "seed": 1}, "query": "~/q"})
    assert cli._expanded("config", config) is config
    assert config.to_dict() == {
        "data": {"json": (f"{tmp_path}/a.json", "b~"), "seed": 1},
        "query": "~/q",
    }
    assert cli._expanded("predictions", ["x=~/p", "~", "~/a=b"]) == [
        f"x={tmp_path}/p",
        str(tmp_path),
        f"{tmp_path}/a=b",
    ]
    assert cli._expanded("workdir", "gs://a/~/b") == "gs://a/~/b"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=good.py", "--raise=data"], "binary.py: rows.json row 3: no images"),
        (["--config=good.py", "--raise=config"], "binary.py: rows.json row 3: no images"),
        (["--config=missing.py"], "missing.py"),
        (
            ["--config=good.py:two", "--config.seed=7"],
            "binary.py: good.py: no number 'two'; there is one\n",
        ),
        (
            ["--config=good.py", "--config.sed=7"],
            "no field 'sed' (did you mean 'seed'?); its fields",
        ),
        (["--config=good.py", "--config.seed=seven"], "--config.seed=seven"),
        (["--config=good.py", "--config.no.x=7"], "py: --config.no.x: the config has no"),
        (["--config=good.py", "--config.seed.x=7"], "py: --config.seed.x: the config has no"),
        (["--config=good.py", "--config.sizes[2]=7"], "py: --config.sizes[2]: the config has no"),
        (["--config=good.py", "--config.sizes[x]=7"], "py: --config.sizes[x]: the config has no"),
        (["--config=good.py", "--config.seed..x=7"], "py: --config.seed..x: the config has no"),
        (["--confg=good.py"], "Unknown command line flag 'confg'"),
        (["--config=good.py", "seed=7"], "unexpected argument 'seed=7'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, flags, message):
    result = run(*flags)
    assert result.returncode == 2
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_a_fault_of_a_recipe_keeps_its_traceback(run, tmp_path):
    (tmp_path / "faulty.py").write_text("def get_config():\n    return {}['seed']\n")
    result = run("--config=faulty.py")
    assert result.returncode == 1 and "faulty.py" in result.stderr
    assert result.stderr.endswith("KeyError: 'seed'\n")


@pytest.mark.parametrize(
    ("flags", "status"), [((), 0), (("--raise=data",), 2), (("--raise=bug",), 1)]
)
def test_a_thread_that_hangs_keeps_no_program_from_its_end(run, flags, status):
    result = run("--config=good.py", "--hang", *flags)
    assert result.returncode == status and result.stdout == "1\n" * (status == 0)
    assert ("Traceback" in result.stderr) == (status == 1)


def test_output_that_cannot_be_written_is_one_line_at_the_end(run):
    with open("/dev/full", "w") as full:
        result = run("--config=good.py", stdout=full)
    assert result.returncode == 2 and result.stderr == (
        "binary.py: stdout: cannot be written (No space left on device); all files were written\n"
    )


def test_output_that_nobody_reads_is_no_error(run):
    there, here = os.pipe()
    os.close(there)
    with os.fdopen(here, "w") as stream:
        result = run("--config=good.py", stdout=stream)
    assert (result.returncode, result.stderr) == (0, "")


def test_output_that_is_closed_from_the_start_is_no_error(run, tmp_path):
    line = f"{sys.executable} binary.py --config=good.py >&-"
    variables = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(
        line, shell=True, cwd=tmp_path, env=variables, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_characters_that_an_encoding_lacks_are_escapes(run):
    result = run("--config=good.py", "--config.path=中é", PYTHONIOENCODING="ascii:strict")
    assert (result.returncode, result.stdout, result.stderr) == (0, "\\u4e2d\\xe9\n", "")
    result = run("--config=good.py", "中", PYTHONIOENCODING="ascii:strict")
    assert result.returncode == 2 and "unexpected argument '\\u4e2d'" in result.stderr


def test_an_interrupt_is_one_line(run):
    result = run("--config=good.py", "--raise=stop")
    assert result.returncode == 130 and result.stderr == "binary.py: interrupted\n"


def test_a_bug_keeps_its_traceback(run):
    result = run("--config=good.py", "--raise=bug")
    assert result.returncode == 1 and "Traceback" in result.stderr


@pytest.mark.parametrize(
    ("kind", "status", "said"),
    [
        ("bug", 1, "Traceback"),
        ("exit", 143, ""),
        ("data", 2, "binary.py: rows.json row 3"),
        ("lost", 1, "binary.py: another process of this run has ended, or can't be reached (UNKN"),
    ],
)
def test_a_process_that_fails_does_not_wait_for_the_others(kind, status, said, run):
    result = run("--config=good.py", "--several", f"--raise={kind}")
    assert result.returncode == status and result.stderr.startswith(said)
    assert kind == "bug" or result.stderr.count("\n") == bool(said)


def test_a_lost_connection_is_a_bug_in_a_run_of_one(run):
    assert "Traceback" in run("--config=good.py", "--raise=lost").stderr
