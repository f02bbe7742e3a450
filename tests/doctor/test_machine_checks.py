"""What single checks of the doctor find, on machines that are made up."""

import dataclasses
import errno
import json
import pathlib
import shutil
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from mirg_jax import sharding
from mirg_jax.data import pipeline
from mirg_jax.data.examples import read_examples
from mirg_jax.doctor import hardware, memory, places, reading, report, steps
from mirg_jax.doctor.report import OK, PROBLEM, WARNING, Check, Report
from mirg_jax.errors import CheckpointError, ConfigError, DataError
from mirg_jax.models.layers import Precision
from mirg_jax.models.sizes import PUBLISHED
from mirg_jax.planning.shapes import run_shapes
from mirg_jax.runs import devices
from mirg_jax.runs.checkpoints import saved_bytes
from mirg_jax.runs.settings import read
from mirg_jax.runs.tokenizer import load_tokenizer

GPU = ("0x10de", "0x2330", "0x030200")
V5E = ("0x1ae0", "0x0063", "0x120000")
NETWORK = ("0x1ae0", "0x0042", "0x020000")  # of Google's machines, no TPU
CUDA = {"jax": "0.10.2", "jaxlib": "0.10.2", "jax-cuda12-plugin": "0.10.2"}
PLAIN = {"jax": "0.10.2", "jaxlib": "0.10.2"}
PAPERS = "Qwen/Qwen2-VL-7B-Instruct"


def computer(root: pathlib.Path, *bus, gpus=0, driver="") -> pathlib.Path:
    """The files by which a machine's devices are known."""
    for number, device in enumerate(bus):
        folder = root / f"sys/bus/pci/devices/0000:00:{number:02x}.0"
        folder.mkdir(parents=True)
        for name, value in zip(("vendor", "device", "class"), device, strict=True):
            (folder / name).write_text(f"{value}\n")
    (root / "dev").mkdir(parents=True, exist_ok=True)
    for number in range(gpus):
        (root / f"dev/nvidia{number}").touch()
    if driver:
        (root / "proc/driver/nvidia").mkdir(parents=True)
        text = f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {driver}  Release Build\n"
        (root / "proc/driver/nvidia/version").write_text(text)
    return root


@pytest.mark.parametrize(
    ("made", "packages", "level", "text"),
    [
        ({"bus": ()}, PLAIN, OK, "no accelerator"),
        ({"bus": (NETWORK,)}, PLAIN, OK, "no accelerator"),
        ({"bus": (GPU, GPU)}, CUDA, PROBLEM, "2 NVIDIA GPUs, but no driver is loaded"),
        ({"bus": (GPU,), "gpus": 1}, CUDA, PROBLEM, "no driver is loaded"),
        ({"bus": (), "gpus": 8, "driver": "550.54.15"}, PLAIN, PROBLEM, "make venv ACCEL=cuda12"),
        ({"bus": (GPU,), "gpus": 1, "driver": "470.82"}, CUDA, PROBLEM, "install 525 or later"),
        (
            {"bus": (GPU,), "gpus": 1, "driver": "550.54.15"},
            CUDA | {"jax-cuda12-plugin": "0.9.1"},
            PROBLEM,
            "jax-cuda12-plugin 0.9.1 is not of jaxlib's version, 0.10.2",
        ),
        ({"bus": (GPU,), "gpus": 1, "driver": "550.54.15"}, CUDA, OK, "driver 550.54.15"),
        ({"bus": (NETWORK, V5E, V5E)}, PLAIN, PROBLEM, "2 TPU chips, but no libtpu"),
        ({"bus": (NETWORK, V5E)}, PLAIN | {"libtpu": "0.0.40"}, OK, "1 TPU chip, "),
    ],
)
def test_accelerators_that_jax_cannot_use_are_found(
    made, packages, level, text, tmp_path, monkeypatch
):
    monkeypatch.setattr(hardware, "installed", lambda names: packages)
    monkeypatch.setattr(hardware, "_wanted", lambda: [])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    check = Check()
    bus = made.pop("bus")
    expected = hardware.machine(check, computer(tmp_path, *bus, **made))
    assert check.findings[-1][0] == level and text in check.findings[-1][1]
    # Where something is in the way, it is told once.
    found = bool(set(bus) & {GPU, V5E})
    assert (expected is not None) == (found and level == OK)


def test_an_accelerator_that_is_not_wanted_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "_wanted", lambda: ["cpu"])
    monkeypatch.setattr(hardware, "installed", lambda names: CUDA)
    check = Check()
    assert hardware.machine(check, computer(tmp_path, GPU, gpus=1, driver="550.1")) is None
    assert check.findings[-1][0] == WARNING and "unset it" in check.findings[-1][1]


def test_a_gpu_that_jax_does_not_see_is_a_problem(recipe):
    check, gpus = Check(), hardware.Accelerators("gpu", 8, "550.54.15")
    assert hardware.start(check, read(recipe("sft")), gpus) is not None
    (first, _), (level, text) = check.findings
    assert (first, level) == (OK, PROBLEM)
    assert "JAX sees the CPU alone, though there are 8 NVIDIA GPUs" in text


def test_a_recipe_for_accelerators_on_a_cpu_is_a_warning(recipe):
    check, settings = Check(), read(recipe("sft"))
    half = dataclasses.replace(settings.model, precision=Precision(jnp.bfloat16, jnp.float32))
    hardware.start(check, settings, None)
    hardware.start(check, dataclasses.replace(settings, model=half), None)
    (first, _), (level, text) = check.findings
    assert (first, level) == (OK, WARNING)
    assert "× cpu (cpu), and the recipe is for GPUs or TPUs: it computes in bfloat16" in text


def test_an_attention_that_cannot_run_is_told(recipe):
    settings = read(recipe("sft"))
    mesh = devices.start(settings.devices)
    check = Check()
    hardware.attention(check, settings.model, PUBLISHED[PAPERS], mesh)
    assert check.findings == [(OK, "xla, in float32 with heads of 128")]
    wanted = dataclasses.replace(settings.model, attention="cudnn")
    with pytest.raises(ConfigError, match="use auto or xla"):
        hardware.attention(check, wanted, PUBLISHED[PAPERS], mesh)


def shapes(recipe, tiny_model, **changes):
    settings = read(recipe("grpo", **changes))
    return run_shapes(settings, devices.start(settings.devices))


def test_a_full_disk_is_a_problem(recipe, tiny_model, tmp_path, monkeypatch):
    run, workdir = shapes(recipe, tiny_model), tmp_path / "run"
    each = saved_bytes(run.state, run.frozen)
    for free, level in ((3 * each, OK), (3 * each - 1, PROBLEM)):
        usage = shutil._ntuple_diskusage(free, 0, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        check = Check()
        places.room(check, run, workdir)
        ((found, text),) = check.findings
        assert found == level and "3 checkpoints of" in text
    assert "make room" in text and "checkpoint.keep=1" in text


def test_checkpoints_that_are_there_need_no_room(recipe, tiny_model, tmp_path, monkeypatch):
    run = shapes(recipe, tiny_model)
    each = saved_bytes(run.state, run.frozen)
    usage = shutil._ntuple_diskusage(9 * each, 0, each)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(places.run_folder, "steps", lambda folder: [2, 4])
    check = Check()
    places.room(check, run, tmp_path)
    assert check.findings[0][0] == OK


def test_a_lora_checkpoint_is_adapters_alone(recipe, tiny_model):
    whole, adapters = (shapes(recipe, tiny_model, **{"lora.rank": r}) for r in (0, 2))
    assert saved_bytes(adapters.state, adapters.frozen) < saved_bytes(whole.state, whole.frozen) / 2


@pytest.mark.parametrize("made", [True, False])
def test_a_workdir_is_tried_and_left_as_it_was(made, tmp_path):
    workdir = tmp_path / "deep/run"
    if made:
        workdir.mkdir(parents=True)
        (workdir / "notes.txt").touch()
    before, check = sorted(tmp_path.rglob("*")), Check()
    assert places.workdir(check, workdir)
    assert check.findings == [(OK, f"{workdir}: a new run")]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_workdir_that_cannot_be_written_is_a_problem(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    check = Check()
    assert not places.workdir(check, tmp_path / "file/run")

    def fail(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", fail)
    assert not places.workdir(check, tmp_path / "run")
    (first, no_folder), (second, full) = check.findings
    assert first == second == PROBLEM
    assert "Not a directory" in no_folder or "not a folder" in no_folder
    assert "No space left on device" in full
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_a_run_would_refuse_is_a_problem(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").touch()
    check = Check()
    assert not places.workdir(check, tmp_path)

    def refuse(self, target):
        raise OSError(errno.EMFILE, "Too many open files")  # as gcsfuse answers

    monkeypatch.setattr(pathlib.Path, "rename", refuse)
    assert not places.workdir(check, tmp_path / "run")
    (first, model), (second, renames) = check.findings
    assert first == second == PROBLEM
    assert "the folder of a model" in model and "renames no folders" in renames
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors"]


def test_a_model_that_is_not_there_yet_is_told(recipe, tiny_model, tmp_path, monkeypatch):
    folder = tmp_path / "cached"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setattr("mirg_jax.runs.hub.download", lambda name, weights: folder)
    settings = read(recipe("sft", **{"init_from": "nobody/small"}))
    check = Check()
    found = places.model(check, settings, tmp_path / "run")
    assert found.folder == folder and found.config.model_type == "qwen2_vl"
    assert check.findings[0][0] == WARNING and "hf download nobody/small" in check.findings[0][1]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 0, 1))
    check = Check()
    places.model(check, settings, tmp_path / "run")
    assert check.findings[0][0] == PROBLEM and "HF_HOME" in check.findings[0][1]


def test_a_model_without_its_weights_is_a_problem(recipe, tiny_model, tmp_path):
    folder = tmp_path / "half"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    settings = read(recipe("sft", **{"model.path": str(folder)}))
    with pytest.raises(CheckpointError, match="half"):
        places.model(Check(), settings, tmp_path / "run")


def test_data_and_held_out_rows_are_read(recipe, scenes, tmp_path):
    check, config = Check(), recipe("grpo")
    assert len(places.data(check, read(config))) == 28
    assert check.findings == [(OK, f"{scenes}/rl.json: 28 examples, 0 rows left out")]
    settings = read(config)
    held_out = dataclasses.replace(
        settings.evaluation, every=2, benchmark=f"{scenes}/eval.json", image_root=str(scenes)
    )
    places.held_out(check, held_out, settings.data)
    assert f"{scenes}/eval.json: 21 rows" in check.findings[-1][1]
    with pytest.raises(DataError, match="evaluation.image_root"):
        wrong = dataclasses.replace(held_out, image_root=str(tmp_path))
        places.held_out(check, wrong, settings.data)
    with pytest.raises(ConfigError, match="data.train_json is not set"):
        places.data(check, read(recipe("grpo", **{"data.train_json": ""})))


def images_of(recipe, tiny_model, step_seconds=None, **changes) -> tuple[str, str]:
    settings = read(recipe("grpo", **changes))
    examples, _ = read_examples(settings.data.train_json)
    check, one = Check(), sharding.Share(0, 1)
    reading.images(check, settings, examples, load_tokenizer(tiny_model), one, step_seconds)
    (found,) = check.findings
    return found


def test_a_slow_data_root_is_told(recipe, tiny_model, monkeypatch):
    level, text = images_of(recipe, tiny_model, step_seconds=1000.0)
    assert level == OK and "images/s" in text and "computes for 1000.0 s" in text

    load = pipeline.load_image

    def slowly(root, path):
        time.sleep(0.2)
        return load(root, path)

    monkeypatch.setattr(pipeline, "load_image", slowly)
    monkeypatch.setattr(reading, "_SECONDS", 1.0)
    # No step was timed, but nothing computes this long.
    level, text = images_of(recipe, tiny_model, batch_size=1024)
    assert level == WARNING and "is slow; copy the images to a local disk" in text
    assert "data.threads=8" in text
    level, text = images_of(recipe, tiny_model, step_seconds=0.1)
    assert level == WARNING and "computes for 0.1 s" in text


def test_the_steps_of_a_run_say_how_long_they_take(tmp_path):
    assert reading.timed_step(tmp_path) is None
    rows = [{"step": n, "seconds": {"data": 9.0, "rollout": 2.0, "update": n}} for n in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert reading.timed_step(tmp_path) == 4.0


def test_a_model_that_does_not_fit_is_a_problem(recipe, tiny_model):
    settings = read(recipe("grpo"))
    mesh = devices.start(settings.devices)

    def fits(free, compiled=False):
        check, device = Check(), memory.Memory(int(free), 2**30)
        memory.fits(check, settings, str(tiny_model), mesh, compiled=compiled, memory=device)
        (found,) = check.findings
        return found

    level, counted = fits(2**30)
    assert level == OK and "--compile" in counted and "weights" in counted
    level, text = fits(1000)
    assert level == PROBLEM and "needs" in text and "; try " in text
    level, text = fits(2**30 * memory.FREE)  # room for the tiny model, but for nothing else
    assert level == WARNING and "8% should stay free" in text
    level, compiled = fits(2**30, compiled=True)
    assert level == OK and "activations" in compiled and "--compile" not in compiled


def test_the_memory_that_is_free(tmp_path, monkeypatch):
    (tmp_path / "proc").mkdir()
    text = "MemTotal:       16000 kB\nMemFree:  1 kB\nMemAvailable:    8000 kB\n"
    (tmp_path / "proc/meminfo").write_text(text)
    assert memory.of_host(tmp_path) == (8000 * 1024, 16000 * 1024)
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert memory.of_host(tmp_path) == (8000 * 1024, 16000 * 1024)
    (group / "memory.max").write_text("4000000\n")
    (group / "memory.current").write_text("1000000\n")
    assert memory.of_host(tmp_path) == (3000000, 4000000)

    def device(used):
        stats = {"bytes_limit": 100, "bytes_in_use": used}
        return SimpleNamespace(memory_stats=lambda: stats)

    monkeypatch.setattr(jax, "local_devices", lambda: [device(10), device(30)])
    assert memory.of_devices() == (70, 100)


@pytest.mark.parametrize("name", [PAPERS, "Qwen/Qwen2.5-VL-3B-Instruct"])
@pytest.mark.parametrize(
    ("fsdp", "tensor", "sampling"), [(1, 1, 1), (8, 1, 1), (16, 1, 4), (6, 2, 2), (1, 8, 8)]
)
def test_the_tiny_model_can_be_divided(name, fsdp, tensor, sampling):
    sizes = PUBLISHED[name]
    mesh = SimpleNamespace(shape={"data": 1, "fsdp": fsdp, "tensor": tensor})
    found = steps.tiny(sizes, mesh, sampling)
    assert found.model_type == sizes.model_type
    assert found.text.head_dim == sizes.text.head_dim
    assert found.vision.head_dim == sizes.vision.head_dim
    for width in (found.text.hidden_size, found.vision.embed_dim):
        assert width % fsdp == 0
    for ways in (tensor, sampling):
        assert found.text.num_kv_heads % ways == found.vision.num_heads % ways == 0
        assert found.text.vocab_size % ways == found.text.intermediate_size % ways == 0
    assert found.text.hidden_size <= 2048


@pytest.mark.parametrize(
    ("row", "level", "text"),
    [
        ({"loss": 1.0, "grad_norm": 0.1, "logprob_diff": 0.001}, OK, "differ by 1.0e-03"),
        ({"loss": 1.0, "grad_norm": 0.1, "logprob_diff": 0.04}, PROBLEM, "model.attention=xla"),
        ({"loss": 1.0, "grad_norm": 0.1, "logprob_diff": None}, PROBLEM, "differ by None"),
        ({"loss": None, "grad_norm": 0.1, "logprob_diff": 0.0}, PROBLEM, "not finite"),
        ({"loss": 1.0, "grad_norm": None, "logprob_diff": 0.0}, PROBLEM, "not finite"),
    ],
)
def test_a_step_is_judged_by_its_log_probs(row, level, text):
    check = Check()
    steps.judge(check, "grpo", row, 3.0)
    assert check.findings[0][0] == level and text in check.findings[0][1]


def test_what_processes_find_is_told_once(monkeypatch, capsys):
    def two(mine):
        """The other host has another version, slower images, and no image of a row."""
        checks = [[name, list(found), dict(facts)] for name, found, facts in mine["checks"]]
        for name, found, facts in checks:
            if name == "images":
                found[0] = (OK, "90 images/s")
                found.append((PROBLEM, "no such file"))
            if "versions" in facts:
                facts["versions"] = ("jax 2", "install the same")
        return [mine | {"host": "here"}, {"host": "there", "checks": checks}]

    monkeypatch.setattr(report.processes, "gather", two)
    told = Report(60.0)
    with told.check("machine") as check:
        check.ok("no accelerator")
        check.same("versions", "jax 1", "install the same")
    assert capsys.readouterr().out == ""  # until they have met
    told.meet()
    with told.check("images") as check:
        check.ok("100 images/s")
    with told.check("rows") as check:
        raise ConfigError("rows can't be divided")
    assert told.close()
    assert capsys.readouterr().out.splitlines() == [
        "ok       machine: no accelerator",
        "problem  machine: versions differ: jax 1 in process 0 (here); jax 2 in process 1 (there); "
        "install the same",
        "ok       images: 100 images/s",
        "problem  images: process 1 (there): no such file",
        "problem  rows: rows can't be divided",
        "problems: 3, warnings: 0; the run would stop",
    ]
