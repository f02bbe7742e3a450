"""Output paths that can't be written, of every binary: said first, before anything is loaded."""

import errno
import json
import os
import pathlib
import re
import sys

import pytest
from conftest import REPOSITORY

from mirg_jax.data.images import ImageRoot
from mirg_jax.data.json_rows import read_rows
from mirg_jax.errors import ConfigError
from mirg_jax.files import outputs, places
from mirg_jax.files.streams import Spare, Steady, say
from mirg_jax.runs import run_folder

# Of every binary: its flag for the output, and others; none of the files that they name exists.
BENCHMARK = ("--benchmark=no.json", "--image_root=nowhere")
CONFIG = f"--config={REPOSITORY}/configs"
BINARIES = {
    "train_sft": ("workdir", f"{CONFIG}/sft_tiny.py", "--config.data.train_json=no.json"),
    "train_grpo": ("workdir", f"{CONFIG}/grpo_tiny.py", "--config.data.train_json=no.json"),
    "evaluate": ("output_dir", f"{CONFIG}/grpo_tiny.py", "--checkpoint=no", *BENCHMARK),
    "evaluate_server": ("output_dir", "--family=mirg", "--model=none", *BENCHMARK),
    "score": ("output", "--benchmark=no.json", "--predictions=no.jsonl"),
    "compare": ("output", "--before=no.json", "--after=no.json"),
    "report": ("output", "--benchmark=no.json", "--predictions=a=no.jsonl"),
    "ground": ("output", "--checkpoint=no", "--images=no.png", "--query=where?"),
    "convert_checkpoint": ("target", "--direction=import", "--source=no"),
    "build_trajectories": (
        "output_dir",
        f"{CONFIG}/trajectories.py",
        "--input=no.json",
        "--image_root=nowhere",
    ),
    "table": ("workdir", f"{CONFIG}/table_3.py:tiny"),
    "demo": ("workdir",),
    "make_small_base": ("output_dir",),
    "draw_scenes": ("output_dir",),
    "rate_rows": (
        "output_dir",
        f"{CONFIG}/grpo_tiny.py",
        "--checkpoint=no",
        "--rows=no.jsonl",
        "--image_root=nowhere",
    ),
    "compose": ("output_dir", "--source=coco=no.json", "--image_root=nowhere", "--sft=1"),
    "plan": ("output", f"{CONFIG}/grpo_tiny.py", "--machine=v5e:2x2"),
    "benchmark": ("output_dir", "--case=generate"),
    "readme_picture": ("output", "--run=nowhere"),
}
FOLDERS = ("workdir", "output_dir", "target")


@pytest.mark.parametrize("script", BINARIES)
def test_every_binary_refuses_an_output_that_cannot_be_written(script, refusal, tmp_path):
    flag, *others = BINARIES[script]
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    bad = {
        tmp_path / "file" / "out.png": "is not a folder",
        tmp_path / "new" / ("x" * 300) / "out.png": "name too long",
        "": "is empty",
    }
    if flag in FOLDERS:
        bad[tmp_path / "file"] = "is not a folder"
    else:
        bad[tmp_path / "folder"] = "is a folder"
    for path, reason in bad.items():
        if script in ("compare", "plan") and not path:  # "": none is written
            continue
        line = refusal(script, *others, f"--{flag}={path}")
        assert f"--{flag}" in line and reason in line, (path, line)
        assert "\n" not in line
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("script", BINARIES)
def test_every_binary_refuses_urls_where_paths_are_needed(script, refusal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flag, *others = BINARIES[script]
    paths = [f"--{flag}=out.png"] + [each for each in others if re.search(r"=.*no", each)]
    for given in paths:
        name = re.split(r"=(?!.*=)", given)[0]
        for url in ("s4://bucket/x", "file:///tmp/x", "gs:/bucket/x"):
            flags = [each for each in (*others, paths[0]) if each != given]
            line = refusal(script, *flags, f"{name}={url}")
            assert name.partition("=")[0] in line and f"{url}: is a URL" in line, line
            assert ("without file://" in line) == url.startswith("file") and "\n" not in line
    assert not os.listdir(tmp_path)


def test_every_setting_that_is_a_url_is_refused(refusal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, *flags = BINARIES["train_sft"]
    for name in ("data.image_root", "evaluation.benchmark", "model.path", "init_from"):
        line = refusal("train_sft", *flags, "--workdir=w", f"--config.{name}=s4://bucket/x")
        assert f"--config.{name}=s4://bucket/x: is a URL" in line
    _, *flags = BINARIES["build_trajectories"]
    line = refusal("build_trajectories", *flags, "--output_dir=o", "--config.prompts=s4://bucket/x")
    assert "--config.prompts=s4://bucket/x: is a URL" in line
    line = refusal("evaluate_server", *BINARIES["evaluate_server"][1:], "--output_dir=o",
                   "--base_url=http://localhost:1/v1")  # fmt: skip
    assert line.startswith("no.json: ")  # the benchmark comes next
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "script, flag",
    [
        ("score", "--benchmark"),
        ("score", "--predictions"),
        ("evaluate_server", "--benchmark"),
        ("compose", "--source=coco"),
    ],
)
def test_an_input_that_can_be_read_only_once_is_refused(script, flag, refusal, tmp_path):
    """It would be hashed as empty, or waited for."""
    os.mkfifo(tmp_path / "pipe")
    row = {"task": "diff", "images": ["1.png"], "question": "?", "answer": [0.1, 0.1, 0.2, 0.2]}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    output, *others = BINARIES[script]
    others = [each for each in others if not each.startswith(flag)]
    where = tmp_path / ("out.json" if output == "output" else "out")
    if flag == "--predictions":
        others = [f"--benchmark={tmp_path / 'rows.json'}"]
    line = refusal(script, f"--{output}={where}", *others, f"{flag}={tmp_path / 'pipe'}")
    assert "a pipe or device" in line and "write it to a file" in line, line


@pytest.mark.parametrize("check", [places.check, places.check_local, places.check_writable])
def test_messages_have_no_secrets_of_a_url(check):
    for url in ("https://user:hunter2@host/x", "https://host/x?token=hunter2"):
        with pytest.raises(ConfigError) as refused:
            check(url, "--benchmark")
        assert "host/x" in str(refused.value) and "hunter2" not in str(refused.value)


def test_functions_refuse_urls_too():
    for call in (run_folder.find_run, ImageRoot.of, read_rows):
        with pytest.raises(ConfigError, match="s4://bucket/x: is a URL"):
            call("s4://bucket/x")
    assert not places.is_url("runs/demo:2/x") and not places.is_url("a:b")


@pytest.mark.parametrize("name", ["out", "out.xyz", "out.json", "out.png.part"])
def test_a_picture_without_a_known_ending_is_refused_first(name, refusal, tmp_path):
    flags = BINARIES["ground"][1:]
    line = refusal("ground", *flags, f"--output={tmp_path / name}")
    assert "names no picture format" in line and name in line
    line = refusal("ground", *flags, f"--output={tmp_path / 'out.PNG'}")
    assert line.startswith("no: ")  # the checkpoint comes next


def test_what_can_be_written_is_left_as_it_is(tmp_path):
    (tmp_path / "file").write_text("kept")
    outputs.check_file(tmp_path / "file", "--output")
    outputs.check_file(tmp_path / "new/folder/file", "--output")
    outputs.check_folder(tmp_path, "--workdir")
    outputs.check_folder(tmp_path / "new/folder", "--workdir")
    outputs.check_file(tmp_path / os.devnull, "--output")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    outputs.check_file(tmp_path / "link", "--output")
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]
    assert (tmp_path / "file").read_text() == "kept"
    for path in (tmp_path / "a\0b", tmp_path / "a\0b" / "c"):
        with pytest.raises(ConfigError, match="null byte"):
            outputs.check_file(path, "--output")
    with pytest.raises(ConfigError, match="link to nowhere"):
        outputs.check_folder(tmp_path / "link", "--workdir")


def test_a_folder_that_renames_no_folders_holds_no_checkpoints(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("kept")
    outputs.check_renames(tmp_path)

    def rename(self, target, before=pathlib.Path.rename):
        if self.is_dir() and any(self.iterdir()):  # as gcsfuse answers
            raise OSError(errno.EMFILE, "Too many open files")
        return before(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", rename)
    with pytest.raises(ConfigError, match=r"renames no folders \(Too many .*--rename-dir-limit"):
        outputs.check_renames(tmp_path)
    assert os.listdir(tmp_path) == ["file"]


def test_messages_and_spare_files_may_fail(capsys):
    there, here = os.pipe()
    os.close(there)
    with os.fdopen(here, "w") as stream:
        say("nobody reads this", stream)
        print("nor this", file=Steady(stream), flush=True)
    with open("/dev/full", "w") as stream:
        full_disk = Steady(stream)
        print("no room for this", file=full_disk, flush=True)
        assert full_disk.failed == "No space left on device"
        full_disk.abandon()  # or else closing it would fail
    spare = Spare("charts")

    def full():
        raise OSError(28, "No space left on device")

    assert spare(lambda: 7) == 7
    assert spare(full) is None and spare(lambda: 7) is None
    said = capsys.readouterr().err
    assert (
        said == "charts: cannot be written (No space left on device); the run goes on without it\n"
    )
    assert sys.stderr.writable()


@pytest.mark.parametrize(
    ("script", "flags", "name"),
    [
        ("score", ("--benchmark=no.json", "--predictions={}"), "predictions"),
        ("compare", ("--before=no.json", "--after={}"), "after"),
        ("ground", ("--checkpoint=no", "--query=where?", "--images=no.png,{}"), "images"),
        ("report", ("--benchmark=no.json", "--predictions=a={}"), "predictions"),
    ],
)
def test_an_output_in_place_of_an_input_is_refused(script, flags, name, refusal, tmp_path):
    (tmp_path / "given.png").write_text("precious")
    path = tmp_path / "." / "given.png"
    said = refusal(script, *(flag.format(path) for flag in flags), f"--output={path}")
    assert f"would replace --{name}" in said
    assert path.read_text() == "precious"


def test_an_output_in_place_of_the_recipe_is_refused(refusal, tmp_path):
    recipe = tmp_path / "grpo.py"
    text = (REPOSITORY / "configs/grpo.py").read_text()
    recipe.write_text(text)
    flags = f"--config={recipe}:qwen2_vl_2b,gpu_1", "--machine=h100:1"
    assert "would replace --config;" in refusal("plan", *flags, f"--output={recipe}")
    assert recipe.read_text() == text
