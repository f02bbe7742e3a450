"""Values that can't work are refused before anything is loaded; 0 means none."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY
from ml_collections import ConfigDict

from mirg_jax.errors import CheckpointError, ConfigError
from mirg_jax.experiments import records
from mirg_jax.models.lora import Lora
from mirg_jax.rl.logprobs import token_logprobs
from mirg_jax.runs import adapters, origin
from mirg_jax.runs.settings import of_model, read
from mirg_jax.runs.tokenizer import say_if_begun
from mirg_jax.training.optimizer import make_optimizer

VALUES = {
    "seed=-1": "seed=-1 must be from 0 to",
    "num_steps=-1": "num_steps=-1 must be 0 or more",
    "batch_size=0": "batch_size=0 must be 1 or more",
    "rows_per_micro_batch=0": "rows_per_micro_batch=0 must be 1 or more",
    "checkpoint.every=-1": "checkpoint.every=-1 must be 0 or more",
    "checkpoint.keep=-1": "checkpoint.keep=-1 must be 0 or more",
    "model.param_dtype=bf16": "model.param_dtype='bf16' is none of float32, bfloat16, float16",
    "model.compute_dtype=int32": "model.compute_dtype='int32' is none of",
    "model.path=": "model.path is empty",
    "prompt.image_label=Image-{m}: ": "only {n}, the image's number, may stand in braces",
    "prompt.image_label=Image {": "only {n}, the image's number, may stand in braces",
    "prompt.image_label={}: ": "only {n}, the image's number, may stand in braces",
    "prompt.instruction=<|im_end|>": "prompt.instruction contains the control token <|im_end|>",
    "optimizer.learning_rate=nan": "optimizer.learning_rate=nan must be a finite number",
    "optimizer.learning_rate=inf": "optimizer.learning_rate=inf must be a finite number",
    "optimizer.weight_decay=1e300": "optimizer.weight_decay=1e+300 must be a finite number",
    "checkpoint.minutes=inf": "checkpoint.minutes=inf must be a finite number",
    "evaluation.max_tokens=3000000000": "evaluation.max_tokens=3000000000 must lie between",
    "num_steps=1" + 30 * "0": "num_steps=1000000000000000000000000000000 must lie between",
    "data.shapes.lengths=(124, 9999999999)": "data.shapes.lengths=9999999999 must lie between",
    "optimizer.b2=1.0": "optimizer.b2=1 must be from 0 to below 1",
    "optimizer.warmup_ratio=2.0": "optimizer.warmup_ratio=2 must be from 0 to 1",
    "data.shapes.lengths=(156, 124)": "data.shapes.lengths=(156, 124): give sizes",
    "data.max_pixels=9": "data.max_pixels=9 is below data.min_pixels=3136",
    "data.threads=-2": "data.threads=-2 must be -1 or more",
    "data.direct=1.5": "data.direct=1.5 must be from 0 to 1",
    "data.difficulty=(0.9,0.1)": "data.difficulty=(0.9, 0.1): give two numbers from 0 to 1",
    "data.gain=(0.1,)": "data.gain=(0.1,): give two numbers of 0 or more",
    "data.difficulty=(0.1,0.9)": "data.ratings='' goes with data.difficulty or data.gain",
    "mesh.fsdp=0": "mesh.fsdp=0 must be 1 or more",
    "freeze=('vision',)": "freeze='vision' is none of visual, embed_tokens, decoder, lm_head",
    "evaluation.max_tokens=0": "evaluation.max_tokens=0 must be 1 or more",
}
GRPO = {
    "grpo.top_p=1.5": "grpo.top_p=1.5 must be from 0 to 1",
    "grpo.updates=0": "grpo.updates=0 must be 1 or more",
    "grpo.pool=0": "grpo.pool=0 must be 1 or more",
    "grpo.pool=2": "all groups but the first batch_size would be thrown away",
    "grpo.max_rounds=2": "grpo.max_rounds=2 is for steps that grpo.gate leaves short",
    "grpo.gate=(-1.0,)": "grpo.gate=-1 must be 0 or more",
    "grpo.gate=('a',)": "must be a list, each of it a number",
    "grpo.order=easy": "grpo.order='easy' is none of sampled, reward",
    "grpo.mini_batches=3": "must be a multiple of grpo.mini_batches=3 times",
    "grpo.temperature=nan": "grpo.temperature=nan must be a finite number",
    "grpo.temperature=1e-30": "grpo.temperature=1e-30 must be 1e-06 or more",
    "grpo.beta=inf": "grpo.beta=inf must be a finite number",
    "grpo.kl_clamp=nan": "grpo.kl_clamp=nan must be a finite number",
    "grpo.rewards.image=inf": "grpo.rewards.image=inf must be a finite number",
    "grpo.completion_lengths=(112, 96)": "grpo.completion_lengths=(112, 96): give sizes",
    "grpo.beta=-0.5": "grpo.beta=-0.5 must be 0 or more",
    "prompts_per_micro_batch=5": "batch_size=16 must be a multiple of prompts_per_micro_batch=5",
    "sampling.slots=-1": "sampling.slots=-1 must be 0 or more",
}

ASKED = [f"--{name}=none" for name in ("model", "benchmark", "image_root", "output_dir")]
ASKED.append("--family=mirg")


@pytest.mark.parametrize(
    "kind, given, message",
    [("sft", *case) for case in VALUES.items()] + [("grpo", *case) for case in GRPO.items()],
)
def test_a_value_that_cannot_work_is_refused_first(kind, given, message, refusal, tmp_path):
    line = refusal(
        f"train_{kind}",
        f"--config={REPOSITORY}/configs/{kind}_tiny.py",
        f"--workdir={tmp_path / 'run'}",
        f"--config.{given}",
    )
    assert message in line and "\n" not in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "script, flags",
    [
        ("demo", ["--seeds=0,-1"]),
        (
            "table",
            [f"--config={REPOSITORY}/configs/table_3.py:tiny", "--workdir=none", "--seeds=1,x"],
        ),
        ("make_small_base", ["--seed=-1"]),
        ("evaluate", ["--limit=-1"]),
        ("evaluate_server", ["--concurrency=0"]),
        ("evaluate_server", [*ASKED, "--timeout=nan"]),
        ("evaluate_server", [*ASKED, "--requests_per_minute=inf"]),
        ("make_small_base", ["--output_dir=none", "--learning_rate=inf"]),
        (
            "doctor",
            [f"--config={REPOSITORY}/configs/sft_tiny.py", "--workdir=none", "--patience=nan"],
        ),
        ("benchmark", ["--case=generate", "--repeats=0"]),
    ],
)
def test_flags_that_cannot_work_are_refused_first(script, flags, refusal):
    line = refusal(script, *flags)
    assert flags[-1] in line and "\n" not in line


NOT_VALUES = {
    "optimizer.learning_rate": (None, "optimizer.learning_rate=None must be a number"),
    "num_steps": (2.5, "num_steps=2.5 must be an integer"),
    "model.path": (None, "model.path=None must be text"),
    "freeze": ((None,), "freeze=(None,) must be a list, each of it text"),
    "data.shapes.lengths": (124, "data.shapes.lengths=124 must be a list, each of it an integer"),
    "data.shapes": (None, "data.shapes=None must be a section of settings"),
    "data.apply_exif": (None, "data.apply_exif=None must be True or False"),
    "lora": (None, "lora=None must be a section of settings"),
    "grpo.rewards": ({"format": None}, "grpo.rewards.format=None must be a number"),
    "grpo.kl": (True, "grpo.kl=True must be text"),
    "grpo.max_tokens": (10**400, "grpo.max_tokens=1000"),
    "lora.alpha": (float("inf"), "lora.alpha=inf must"),
    "sampling": ({"tensor": 1}, "sampling.prompts is missing"),
    "prompt": (
        {"system": "", "image_label": "", "instruction": "", "suffix": ""},
        "prompt.suffix is no setting; those there are direct_instruction, image_label, instruction",
    ),
}


@pytest.mark.parametrize("field", NOT_VALUES)
def test_none_and_other_types_are_no_values(field, recipe, tmp_path):
    value, message = NOT_VALUES[field]
    raw = recipe("grpo").to_dict()
    *sections, name = field.split(".")
    functools.reduce(dict.__getitem__, sections, raw)[name] = value
    with pytest.raises(ConfigError) as caught:
        read(ConfigDict(raw))
    assert str(caught.value).startswith(message)

    # The same in the folder of a run, whose config.json no flag has checked.
    (tmp_path / "checkpoints/2").mkdir(parents=True)
    (tmp_path / "checkpoints/2/_CHECKPOINT_METADATA").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="config.json: not a record of a run's settings"):
        of_model(tmp_path)


def test_a_config_file_that_sets_none_is_refused_in_a_line(refusal, tmp_path):
    file = tmp_path / "mine.py"
    text = "from configs import {0}\ndef get_config():\n    config = {0}.get_config({1})\n"
    file.write_text(text.format("sft_tiny", "") + "    config.seed = None\n    return config\n")
    line = refusal("train_sft", f"--config={file}", f"--workdir={tmp_path / 'run'}")
    assert line == "seed=None must be an integer"
    file.write_text(
        text.format("table_3", "'tiny'") + "    config.order = None\n    return config\n"
    )
    line = refusal("table", f"--config={file}", f"--workdir={tmp_path / 'run'}")
    assert line.startswith("order=None is not a value") and not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "null", '"text"'])
def test_damaged_records_of_a_run_are_named(text, tmp_path, tiny_model, refusal):
    """Each reader of a file in a run's folder, or in that of a conversion or a table."""
    (tmp_path / "checkpoints/2").mkdir(parents=True)
    (tmp_path / "checkpoints/2/_CHECKPOINT_METADATA").write_text("{}")
    names = ("config.json", "origin.json", "lora.json", "unfinished.json", "made_with.json")
    for name in names:
        (tmp_path / name).write_text(text)
    readers = (of_model, origin.read, adapters.read, records.facts_of_run)
    for reader, name in zip(readers, (*names[:3], names[0]), strict=True):
        with pytest.raises(CheckpointError, match=f"{name}: not a record of "):
            reader(tmp_path)
    with pytest.raises(CheckpointError, match="made_with.json: not a record of a part's settings"):
        records.check(tmp_path / "made_with.json", {"seed": 1}, made=True)
    target = f"--target={tmp_path}"
    line = refusal("convert_checkpoint", "--direction=export", f"--source={tiny_model}", target)
    assert "unfinished.json: not a record of a conversion" in line and "\n" not in line


ORIGIN = {"source": "a", "weights": "b", "param_dtype": "float32"}
LORA = {"base": "a", "param_dtype": "float32", "lora": {"rank": 4, "alpha": 8}}


@pytest.mark.parametrize(
    ("read_record", "record", "said"),
    [
        (origin.read, {"weights": "b", "param_dtype": "float32"}, "it has no 'source'"),
        (origin.read, ORIGIN | {"weights": 7}, "weights is 7"),
        (adapters.read, {"base": "a", "param_dtype": "float32"}, "it has no 'lora'"),
        (adapters.read, LORA | {"lora": {"alpha": 8}}, "it has no 'rank'"),
        (adapters.read, LORA | {"lora": {"rank": "4"}}, 'rank is "4"'),
        (adapters.read, LORA | {"lora": {"rank": 4, "alpha": True}}, "alpha is true"),
        (adapters.read, LORA | {"lora": {"rank": 4, "targets": 5}}, "not iterable"),
        (adapters.read, LORA | {"lora": {"rank": 4, "targets": ["x"]}}, "'x' is none of"),
    ],
)
def test_what_a_record_lacks_is_named(read_record, record, said, tmp_path):
    for name in ("origin.json", "lora.json"):
        (tmp_path / name).write_text(json.dumps(record))
    with pytest.raises(CheckpointError) as error:
        read_record(tmp_path)
    line = str(error.value)
    assert ".json: not a record of a" in line and said in line and "restore it" in line
    assert "__init__" not in line and "\n" not in line


def test_records_of_a_later_version_are_read(tmp_path):
    (tmp_path / "origin.json").write_text(json.dumps(ORIGIN | {"more": 1}))
    (tmp_path / "lora.json").write_text(json.dumps(LORA | {"more": 1}))
    assert origin.read(tmp_path) == origin.Origin(**ORIGIN)
    assert adapters.read(tmp_path) == adapters.Record("a", "float32", Lora(4, 8))


def test_a_trajectory_seed_is_checked_too(refusal, tmp_path):
    line = refusal(
        "build_trajectories",
        f"--config={REPOSITORY}/configs/trajectories.py:scenes",
        "--input=none.json",
        "--image_root=.",
        f"--output_dir={tmp_path}",
        "--config.scenes.seed=-1",
    )
    assert "scenes.seed=-1 may not be negative" in line


def test_0_means_none(recipe):
    names = ("checkpoint.every", "checkpoint.keep", "max_skipped", "logprob_chunk")
    settings = read(recipe("sft", **dict.fromkeys(names, 0), **{"optimizer.clip_norm": 0.0}))
    params = {"kernel": jnp.ones((2, 3))}
    grads = {"kernel": jnp.arange(6.0).reshape(2, 3)}

    def update(clip_norm):
        changed = dataclasses.replace(settings.optimizer, clip_norm=clip_norm, name="adamw")
        optimizer = make_optimizer(dataclasses.replace(changed, b1=0.0, b2=0.0, eps=1.0), 10)
        state = optimizer.init(params)
        _, state = optimizer.update(grads, state, params)
        return optimizer.update(grads, state, params)[0]["kernel"]

    np.testing.assert_array_equal(update(0.0), update(1e9))
    assert (update(0.0) != update(1.0)).any()

    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(1, 9, 4)), rng.normal(size=(4, 7))
    arrays = jnp.float32(hidden), jnp.float32(head), jnp.asarray(rng.integers(7, size=(1, 9)))
    whole, parts = (token_logprobs(*arrays, chunk=chunk) for chunk in (0, 4))
    np.testing.assert_allclose(whole, parts, rtol=1e-5)
    assert jax.tree.leaves(whole)[0].shape == (1, 9)


def test_a_bound_may_be_infinite(recipe):
    config = recipe("grpo")
    config.grpo.kl_clamp = config.grpo.clip_high = config.optimizer.clip_norm = float("inf")
    settings = read(config)
    assert settings.grpo.clip_high == settings.optimizer.clip_norm == float("inf")
    config.seed = 2**62
    assert read(config).seed == 2**62


@pytest.mark.parametrize(
    ("name", "text", "thinks"),
    [
        ("chat_template.jinja", r"{{- '<|im_start|>assistant\n<think>\n' }}", True),
        ("chat_template.jinja", "<|im_start|>assistant\n<think>\n", True),
        (
            "chat_template.json",
            r'{"chat_template": "\'<|im_start|>assistant\\n<think>\\n\'"}',
            True,
        ),
        ("chat_template.jinja", r"{{- '<|im_start|>assistant\n' }}<think>", False),
        ("README.md", r"<|im_start|>assistant\n<think>", False),
    ],
)
def test_a_thinking_variant_is_known_by_its_template(name, text, thinks, tmp_path, capsys):
    folder = shutil.copytree(REPOSITORY / "assets/small_base_qwen3_vl", tmp_path / "model")
    (folder / name).write_text(text)
    own = read(of_model(folder)).prompt
    assert own.thinking == thinks and own.system == ""
    say_if_begun(folder, own)
    assert capsys.readouterr() == ("", "")
    say_if_begun(folder, dataclasses.replace(own, thinking=False))
    assert ("--config.prompt.thinking=True" in "".join(capsys.readouterr())) == thinks
