"""What is said when a model can't be had from the hub: a line, whatever fails below."""

import http.server
import os
import subprocess
import sys
import threading

import pytest
from conftest import REPOSITORY, call

from mirg_jax.errors import CheckpointError
from mirg_jax.runs import hub

DOWNLOADS = """
import sys
from mirg_jax.errors import CheckpointError
from mirg_jax.runs import hub
for name in sys.argv[1:]:
    try:
        hub.download(name)
    except CheckpointError as error:
        print(error)
"""
VARIABLES = ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY")


def lines(cache, *names, **environment) -> list[str]:
    """What a process with these variables says of each name."""
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    result = subprocess.run(
        [sys.executable, "-c", DOWNLOADS, *names],
        env=kept
        | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_CACHE": str(cache)}
        | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
    found = result.stdout.splitlines()
    assert len(found) == len(names), found
    return found


@pytest.mark.parametrize(
    "variable, value, reason",
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", "socksio"),
        ("HTTPS_PROXY", "ftp://user:secret@proxy", "Unknown scheme for proxy"),
        ("HF_ENDPOINT", "hub.example", "missing an 'http://'"),
        ("HF_ENDPOINT", "http://[", "Invalid IPv6 URL"),
        ("HF_ENDPOINT", "http://127.0.0.1:port", "port"),
        ("HF_ENDPOINT", "http://127.0.0.1:9", "refused"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "long", "'long'"),
        ("SSL_CERT_FILE", "/no/such/file", "No such file"),
    ],
)
def test_settings_of_the_environment(tmp_path, variable, value, reason):
    (line,) = lines(tmp_path, "Owner/Model", **{variable: value})
    assert line.startswith("Owner/Model: not a folder here, and the Hugging Face hub can't be ")
    assert reason in line and variable in line and "secret" not in line


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub that refuses each name in its own way."""

    STATUS = {"missing": (404, "RepoNotFound"), "gated": (403, "GatedRepo"), "broken": (500, "")}

    def do_GET(self):
        name = next(name for name in self.STATUS if name in self.path)
        status, code = self.STATUS[name]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def test_answers_of_the_hub(tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = f"http://127.0.0.1:{server.server_port}"
        names = ("x/missing", "x/gated", "x/broken", "not a name")
        missing, gated, broken, no_name = lines(tmp_path, *names, HF_ENDPOINT=where)
        server.shutdown()
    assert "no public model of this name; check the name" in missing
    assert "accept its conditions" in gated
    assert "500" in broken and "check the name" not in broken
    assert "OWNER/MODEL; check the path" in no_name


def test_without_a_network(tmp_path):
    (line,) = lines(tmp_path, "Owner/Model", HF_HUB_OFFLINE="1")
    assert "not in the cache" in line and "HF_HUB_OFFLINE" in line


def test_a_mistyped_path_is_told_which_folders_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tables", "demo_quick", "demo"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    for name in ("runs/dmeo/grpo", "runs/dmeo", f"{tmp_path}/runs/dmeo"):
        with pytest.raises(CheckpointError) as error:
            hub.download(name)
        there = "runs has demo, demo_quick, tables), and not "
        assert str(error.value).startswith(f"{name}: not a folder here (") and there in str(
            error.value
        )


def test_a_binary_says_it_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://[")
    flags = ("--direction=import", "--source=Owner/Model", f"--target={tmp_path / 'run'}")
    result = call("convert_checkpoint", *flags)
    assert result.returncode == 2, result.stderr
    assert "Invalid IPv6 URL" in result.stderr and result.stderr.count("\n") == 1
