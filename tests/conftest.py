"""Shared test set-up: CPU only, a persistent compilation cache, and the optional real data."""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent / ".jax_cache")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if os.environ["JAX_PLATFORMS"] != "cpu":  # there float32 is by default multiplied in fewer bits
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "float32")

from jaxtyping import install_import_hook

# Their functions' calls are checked against the signatures: types, shapes, dtypes.
ROOMS = ("data", "models", "rl", "sampling", "training", "weights")
install_import_hook([f"mirg_jax.{room}" for room in ROOMS], "typechecks.check")

import bucket as fake_bucket
import jax
import pytest
import small_families
from absl import flags
from ml_collections import ConfigDict
from orbax.checkpoint._src.path import gcs_utils

from configs import grpo_tiny, sft_tiny, trajectories
from mirg_jax import cli
from mirg_jax.errors import UserError
from mirg_jax.mig_bench.benchmark import load_benchmark
from mirg_jax.models.config import ModelConfig, VisionConfig
from mirg_jax.models.qwen2_vl import create
from mirg_jax.runs import metrics
from mirg_jax.scenes import scene_tasks, small_tokenizer
from mirg_jax.trajectories import build
from mirg_jax.trajectories import settings as trajectory_settings
from mirg_jax.weights import hf

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


def call(script: str, *flags: object, timeout: float = 300) -> subprocess.CompletedProcess:
    """Runs a binary as a user would, from the top of the checkout."""
    return subprocess.run(
        [sys.executable, REPOSITORY / "scripts" / f"{script}.py", *map(str, flags)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=timeout,
    )


def train(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Runs or resumes a recipe by the binary of its stage, in this process."""
    stage = "grpo" if "grpo" in config else "sft"
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "recipe.py"
        file.write_text(
            "import json\nfrom ml_collections import ConfigDict\n"
            f"def get_config():\n    return ConfigDict(json.loads({config.to_json()!r}))\n"
        )
        with binary(f"train_{stage}", f"--config={file}", f"--workdir={workdir}") as module:
            module.main(cli._parse_flags(sys.argv))


def scalars(workdir: pathlib.Path | str) -> list[dict]:
    """The metrics of a run's steps, without those that are measured in time."""
    told = "seconds", "speed"
    return [{k: v for k, v in row.items() if k not in told} for row in metrics.read(workdir)]


@contextlib.contextmanager
def killed_after_step_3():
    """Ends a run in the block by an exception when the metrics of step 3 are written."""

    class Killed(Exception):
        pass

    write = metrics.Metrics.write

    def write_until_step_3(self, step, *args, **kwargs):
        write(self, step, *args, **kwargs)
        if step == 3:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(metrics.Metrics, "write", write_until_step_3)
        yield


def page_data(path: pathlib.Path) -> dict:
    """What the script of a report is given."""
    text = path.read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">([^<]*)</script>', text)
    return json.loads(data)


@contextlib.contextmanager
def binary(script: str, *arguments: object):
    """A binary as a module of this process, with its flags and arguments while it is open."""
    path, before = REPOSITORY / "scripts" / f"{script}.py", set(flags.FLAGS)
    spec = importlib.util.spec_from_file_location(f"binary_{script}", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        patch.setitem(sys.modules, spec.name, module)  # where absl looks for who defines a flag
        try:
            spec.loader.exec_module(module)
            yield module
        finally:
            for name in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, name)
            flags.FLAGS.unparse_flags()


@pytest.fixture
def refusal(capsys):
    """Runs a binary's main here, and returns the line that it ends in; "" for success."""

    def run(script: str, *arguments: object) -> str:
        try:
            with binary(script, *arguments) as module:
                module.main(cli._parse_flags(sys.argv))
            return ""
        except UserError as error:
            return str(error)
        except SystemExit as ended:  # bad flags
            assert ended.code == 2
            return capsys.readouterr().err.strip()

    return run


@pytest.fixture(scope="session")
def _server():
    server = fake_bucket.Server()
    os.environ.update(server.environment())  # TensorStore reads it once
    fake_bucket.install()
    return server


@pytest.fixture
def bucket(_server, monkeypatch, tmp_path_factory):
    """The server of gs://bucket, which is empty."""
    # Asks Google's own client, which is not needed otherwise.
    monkeypatch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    _server.generations.clear()
    _server.objects.clear()
    _server.requests.clear()
    _server.delay, _server.broken = 0.0, set()
    return _server


@pytest.fixture(autouse=True)
def few_programs():
    """Compiled programs of jax 0.11 are mapped piece by piece; Linux allows a process 65,530."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def shared():
    """Path inside the `shared` folder beside the checkout; skips where there is none."""

    def find(*parts: str) -> pathlib.Path:
        path = REPOSITORY.parent.joinpath("shared", *parts)
        if not path.exists():
            pytest.skip(f"needs real data that is not committed: ../shared/{'/'.join(parts)}")
        return path

    return find


@pytest.fixture(scope="session")
def benchmark(shared):
    """The rows of MIG-Bench."""
    return load_benchmark(shared("mig_bench", "MIG_data.json"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> pathlib.Path:
    """A Hugging Face folder with a model of random weights, small enough to train in a test."""
    folder = tmp_path_factory.mktemp("tiny_model")
    return write_tiny_model(folder, "qwen2_vl", VisionConfig(1, 32, 2, 2, 32))


@pytest.fixture(scope="session")
def tiny_model_of(tmp_path_factory):
    """The same of any family, by its name."""

    @functools.cache
    def make(family: str) -> pathlib.Path:
        folder = tmp_path_factory.mktemp(f"tiny_{family}")
        return write_tiny_model(folder, family, small_families.TOWERS[family])

    return make


def write_tiny_model(folder: pathlib.Path, family: str, vision: VisionConfig) -> pathlib.Path:
    small_tokenizer.write(folder)
    tokenizer = small_tokenizer.build()
    config = dataclasses.replace(
        small_families.config(family, tokenizer.get_vocab_size(), tied=True),
        vision=vision,
        **{
            f"{name}_token_id": tokenizer.token_to_id(f"<|{token}|>")
            for name, token in {
                "image": "image_pad",
                "video": "video_pad",
                "vision_start": "vision_start",
                "vision_end": "vision_end",
                "bos": "endoftext",
                "eos": "im_end",
            }.items()
        },
    )
    hf.save(folder, create(config)[1], config)
    return folder


@pytest.fixture
def wider_model(tiny_model, tmp_path):
    """A Hugging Face folder like `tiny_model`'s with a wider feed-forward."""
    folder = tmp_path / "wider_model"
    shutil.copytree(tiny_model, folder)
    raw = json.loads((folder / "config.json").read_text()) | {"intermediate_size": 96}
    (folder / "config.json").write_text(json.dumps(raw))
    config = ModelConfig.from_folder(folder)
    hf.save(folder, create(config)[1], config)
    return folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> pathlib.Path:
    """A few procedural scenes in the real file formats, with trajectories."""
    folder = tmp_path_factory.mktemp("scenes")
    scene_tasks.write_dataset(folder, seed=5, sft=28, rl=28, evaluation=21)
    config = trajectories.scenes()
    config.scenes.seed = 5
    made = folder / "trajectories"
    build.build(
        trajectory_settings.read(config),
        source=str(folder / "sft.json"),
        image_root=str(folder),
        output_dir=made,
    )
    (folder / "sft.jsonl").write_bytes((made / "grounded.jsonl").read_bytes())
    return folder


@pytest.fixture
def recipe(tiny_model, scenes):
    """See `small_recipe`."""
    return small_recipe(tiny_model, scenes)


def small_recipe(tiny_model: pathlib.Path, scenes: pathlib.Path):
    """The tiny recipes on that model and those scenes, a few steps long."""

    def make(kind: str, **changes):
        config = {"sft": sft_tiny, "grpo": grpo_tiny}[kind].get_config()
        config.model.path = str(tiny_model)
        config.data.image_root = str(scenes)
        config.data.train_json = str(scenes / {"sft": "sft.jsonl", "grpo": "rl.json"}[kind])
        config.cpu_devices = 0
        config.data.shapes.lengths = config.data.shapes.lengths[-1:]  # each is a program
        config.num_steps = 4
        config.checkpoint.every = 2
        config.batch_size = 4
        if kind == "sft":
            config.rows_per_micro_batch = 2
        else:
            config.prompts_per_micro_batch = 2
            config.grpo.group = 3
            config.grpo.max_tokens = 12
            config.grpo.completion_lengths = (12,)
            config.grpo.log_groups_every = 2
        config.update_from_flattened_dict(changes)
        return config

    return make


@pytest.fixture
def steady_recipe(recipe):
    """See `steady`."""
    return steady(recipe)


def steady(recipe):
    """A recipe with a constant rate: runs of any number of steps then share their programs."""
    constant = {"optimizer.schedule": "constant", "optimizer.warmup_ratio": 0.0}
    return lambda kind, **changes: recipe(kind, **constant | changes)


@pytest.fixture(scope="module")  # not longer: with it runs an event loop, beside which no other may
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the playwright package")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"needs a browser, one of: {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as started:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = started.chromium.launch(executable_path=path, args=arguments)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    """Opens a file, or a tab for one.

    In the end, no script has failed, and nothing but the files was asked for.
    """
    contexts, problems, asked = [], [], []

    def visit(path=None, width=1280, height=900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text))
        page.on("request", lambda request: asked.append(request.url))
        if path:
            page.goto(pathlib.Path(path).as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not problems
    assert all(url.startswith(("file:", "data:")) for url in asked)
    assert sum(url.startswith("file:") for url in asked) == len(contexts)


def drawn(page, kind):
    """For every box of a kind: its image, from 1, and its sides as fractions of the picture."""
    return page.evaluate(
        """kind => [...document.querySelectorAll('dialog figure')].flatMap((figure, i) => {
            const picture = figure.querySelector('svg').getBoundingClientRect();
            return [...figure.querySelectorAll('rect.' + kind)].map(rect => {
                const box = rect.getBoundingClientRect();
                return [i + 1, (box.left - picture.left) / picture.width,
                        (box.top - picture.top) / picture.height,
                        (box.right - picture.left) / picture.width,
                        (box.bottom - picture.top) / picture.height];
            });
        })""",
        kind,
    )
