"""A step of SFT and one of GRPO with a tiny random model, on the recipe's mesh and in its way.

They are whole runs of one step, from reading pictures to a checkpoint, of drawn scenes. The model
has the recipe's family, head sizes and dtypes, so that it is computed by the same kernels.
"""

import contextlib
import dataclasses
import io
import math
import pathlib
import tempfile
import time
from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh

from mirg_jax import defaults, sharding
from mirg_jax.data.batching import Shapes
from mirg_jax.data.prompts import PromptStyle
from mirg_jax.doctor import places
from mirg_jax.doctor.report import Check
from mirg_jax.errors import ConfigError
from mirg_jax.files.places import Place
from mirg_jax.models import qwen2_vl
from mirg_jax.models.config import ModelConfig
from mirg_jax.runs import metrics
from mirg_jax.runs.devices import sampling_mesh
from mirg_jax.runs.settings import Settings, Stage, read
from mirg_jax.scenes import scene_tasks, small_tokenizer
from mirg_jax.sharding import processes
from mirg_jax.training import grpo, sft
from mirg_jax.training.speed import MOST_DIFFERENT
from mirg_jax.weights import hf

_TOKENS = 16  # of a completion
_TRAIN = {"sft": sft.train, "grpo": grpo.train}


def tiny(sizes: ModelConfig, mesh: Mesh, sampling_tensor: int) -> ModelConfig:
    """Returns a model of two layers that can be divided over the mesh's axes.

    Args:
      sizes: the recipe's model, whose family and head sizes are kept.
      mesh: the training mesh.
      sampling_tensor: devices that share a copy of the weights while sampling.
    """
    tensor, fsdp = math.lcm(mesh.shape["tensor"], sampling_tensor), mesh.shape["fsdp"]
    text, vision = sizes.text, sizes.vision
    kv_heads = max(tensor, 2)
    heads = kv_heads * math.lcm(2, fsdp // math.gcd(fsdp, kv_heads * text.head_dim))
    width = heads * text.head_dim
    tower_heads = tensor * math.lcm(2, fsdp // math.gcd(fsdp, tensor * vision.head_dim))
    tower_width = tower_heads * vision.head_dim
    tokenizer = small_tokenizer.build()
    names = ("image_pad", "video_pad", "vision_start", "vision_end", "endoftext", "im_end")
    image, video, start, end, bos, eos = (tokenizer.token_to_id(f"<|{name}|>") for name in names)
    return dataclasses.replace(
        sizes,
        text=dataclasses.replace(
            text,
            vocab_size=math.ceil(tokenizer.get_vocab_size() / (8 * tensor)) * 8 * tensor,
            hidden_size=width,
            intermediate_size=width,
            num_layers=2,
            num_heads=heads,
            num_kv_heads=kv_heads,
            tie_word_embeddings=False,  # logits of some size, though the weights are random
        ),
        vision=dataclasses.replace(
            vision,
            depth=2,
            embed_dim=tower_width,
            num_heads=tower_heads,
            out_dim=width,
            mlp_dim=tower_width if vision.mlp_dim else 0,
            full_blocks=(1,) if vision.window else (),
            deepstack=(0,) if vision.deepstack else (),
        ),
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        bos_token_id=bos,
        eos_token_id=eos,
        end_tokens=(),
    )


def small(settings: Settings, stage: Stage, folder: pathlib.Path, rows: int) -> Settings:
    """Returns a recipe of one step of two micro-batches, otherwise as the given one.

    Args:
      settings: the recipe.
      stage: "sft" or "grpo".
      folder: where `make_inputs` has written.
      rows: rows of a micro-batch.
    """
    of = None
    if stage == "grpo":
        own = settings.grpo or read(defaults.grpo()).grpo
        of = dataclasses.replace(
            own,
            group=2,
            updates=1,
            pool=1,
            gate=(),
            max_rounds=1,
            order="sampled",
            mini_batches=1,
            int8_sampling=False,
            importance_cap=0.0,
            max_tokens=_TOKENS,
            completion_lengths=(_TOKENS,),
            log_groups_every=0,
            prompts=2 * rows,
            slots=rows if own.slots else 0,
        )
    shapes = Shapes(lengths=(192,), slots=(3,), patches=(16,))
    data = dataclasses.replace(
        settings.data,
        train_json=str(folder / "rl.json"),
        image_root=str(folder),
        shapes=shapes,
        min_pixels=28 * 28,
        max_pixels=64 * 64,  # four patches a side, of 14 or 16 pixels
    )
    return dataclasses.replace(
        settings,
        stage=stage,
        num_steps=1,
        batch_size=2 * rows,
        micro_batch=rows,
        init_from="",
        model=dataclasses.replace(settings.model, path=str(folder / "model")),
        data=data,
        prompt=PromptStyle(system="", image_label=settings.prompt.image_label, instruction=""),
        checkpoint=dataclasses.replace(settings.checkpoint, every=0, keep=1),
        evaluation=dataclasses.replace(settings.evaluation, every=0),
        grpo=of,
        profile=(),
    )


def make_inputs(folder: pathlib.Path, sizes: ModelConfig, count: int) -> None:
    """Writes a model of random weights, and questions about drawn scenes.

    Args:
      folder: where to write.
      sizes: the model.
      count: number of questions.
    """
    small_tokenizer.write(folder / "model")
    hf.save(folder / "model", qwen2_vl.create(sizes)[1], sizes)
    scene_tasks.write_dataset(folder, seed=0, sft=0, rl=count, evaluation=0)


@contextlib.contextmanager
def inputs(folder: Place, sizes: ModelConfig, count: int) -> Iterator[pathlib.Path]:
    """Has a folder for inputs and small runs made, and removed in the end; all must enter it.

    The first process makes it, for all. If it is in a store, where runs can be but a model should
    not, each process has inputs of its own on a disk.

    Yields:
      The folder with the inputs.

    Raises:
      ConfigError: if another process doesn't see it.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(places.borrowed(folder.parent))
        where = folder
        if not isinstance(where, pathlib.Path):
            where = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            if where != folder or processes.is_first():
                make_inputs(where, sizes, count)
            processes.gather("")  # the others wait for it
            if not places.appears(where / "rl.json"):
                raise ConfigError(f"{folder}: not seen here; give a --workdir that all hosts share")
            yield where
            processes.gather("")  # and it for them
        finally:
            if processes.is_first():
                places.remove_folder(folder)


def run(check: Check, settings: Settings, sizes: ModelConfig, mesh: Mesh, folder: Place) -> None:
    """Takes a step of SFT and one of GRPO; all processes must call this.

    Args:
      check: takes what is found.
      settings: the recipe.
      sizes: the recipe's model.
      mesh: the training mesh.
      folder: a folder to write in, the same one for all processes; it is removed.

    Raises:
      Exception: whatever a step raises.
    """
    sampling = sampling_mesh(settings.devices, mesh)
    rows = math.lcm(sharding.row_parts(mesh), sharding.row_parts(sampling))
    model = tiny(sizes, mesh, settings.devices.sampling_tensor)
    with inputs(folder, model, 2 * rows) as where:
        for stage in ("sft", "grpo"):
            start = time.perf_counter()
            with _silently():
                _TRAIN[stage](small(settings, stage, where, rows), folder / stage)
            if processes.is_first():
                row = metrics.read(folder / stage)[-1]
                judge(check, stage, row, time.perf_counter() - start)


@contextlib.contextmanager
def _silently() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def judge(check: Check, stage: str, row: dict, seconds: float) -> None:
    """Looks at a step's metrics: a finite loss, and log-probs that agree.

    Args:
      check: takes what is found.
      stage: "sft" or "grpo".
      row: the step's line of metrics.jsonl, where null stands for what is not finite.
      seconds: how long it took.
    """
    loss, apart = row["loss"], row.get("logprob_diff", 0.0)
    report = "see that this is the version of jax in requirements.txt, and report it"
    attention = f"try --config.model.attention=xla; {report}"
    if loss is None or row["grad_norm"] is None or not np.isfinite(loss):
        check.problem(f"{stage}: loss or gradient of a tiny model are not finite; {attention}")
        return
    if apart is None or apart > MOST_DIFFERENT:
        check.problem(
            f"{stage}: sampled and learned log-probs of the same tokens differ by {apart}, more "
            f"than {MOST_DIFFERENT}; {attention}"
        )
        return
    differ = f", sampled and learned log-probs differ by {apart:.1e}" if stage == "grpo" else ""
    check.ok(f"{stage} of a tiny model: loss {loss:.3f}{differ}, {seconds:.0f} s with compiling")
