"""The checks before a run, in order: devices, processes, files, memory, and a small step."""

import dataclasses
import pathlib
import tempfile
import uuid

import jax
import numpy as np
from jax.sharding import Mesh

from mirg_jax import sharding
from mirg_jax.data.examples import Example
from mirg_jax.doctor import hardware, memory, places, reading, steps
from mirg_jax.doctor.report import Check, Report
from mirg_jax.files.places import Place, is_url
from mirg_jax.files.streams import say
from mirg_jax.models.config import ModelConfig
from mirg_jax.models.sizes import PUBLISHED
from mirg_jax.planning.shapes import run_shapes
from mirg_jax.runs import checks
from mirg_jax.runs.devices import sampling_mesh
from mirg_jax.runs.settings import Settings
from mirg_jax.sharding import processes

_UNMET = (
    "the processes of this run did not find each other; start the same command on all hosts, and "
    "make sure that each can reach the coordinator's address and port"
)
_COMPILING = 600.0  # seconds that checks that compile programs may take, at least


def examine(
    settings: Settings,
    workdir: Place,
    *,
    compiled: bool | None = None,
    patience: float = 120.0,
) -> bool:
    """Checks what a run needs, and prints a line for each check; all processes must call this.

    Args:
      settings: the run's settings.
      workdir: the run's folder.
      compiled: whether the recipe's programs are compiled, to count their activations; None: on
        accelerators.
      patience: seconds that a check may take.

    Returns:
      Whether something would stop the run.
    """
    report = Report(patience)
    started, mesh = _start(report, settings)
    if not started:
        return report.close()
    usable = False
    with report.check("workdir") as check:
        usable = places.workdir(check, workdir)
    model = None
    # Of a store it is copied to a disk.
    patience_for_model = _COMPILING if is_url(settings.source) else None
    with report.check("model", patience=patience_for_model) as check:
        model = places.model(check, settings, workdir)
    examples: list[Example] = []
    with report.check("data") as check:
        examples = places.data(check, settings)
    if settings.evaluation.every:
        with report.check("held-out rows") as check:
            places.held_out(check, settings.evaluation, settings.data)
    if examples and model:
        with report.check("images") as check:
            share = sharding.data_share(mesh) if mesh else sharding.Share(0, 1)
            step = reading.timed_step(workdir)
            fitting = settings.for_model(model.config)
            reading.images(check, fitting, examples, model.tokenizer, share, step)
    else:
        report.skip("images", "data or model can't be read")
    name = str(model.folder) if model else settings.model.path
    sizes = model.config if model else PUBLISHED.get(settings.model.path)
    if not all(processes.gather(bool(sizes and mesh))):
        report.skip("checkpoints, memory and steps", "there is no mesh, or no model")
        return report.close()
    _compute(report, settings, workdir if usable else None, name, sizes, mesh, compiled)
    return report.close()


def _start(report: Report, settings: Settings) -> tuple[bool, Mesh | None]:
    """Looks at the machine, joins the processes, and creates the mesh.

    Returns:
      Whether there are devices that all processes know of, and the mesh if it matches them.
    """
    expected, mesh, met, started = None, None, False, False
    with report.check("machine") as check:
        expected = hardware.machine(check)
    with report.check("processes", late=_UNMET) as check:
        processes.start()
        met = True
    if met:
        with report.check("devices", late=_UNMET) as check:
            mesh = hardware.start(check, settings, expected)
            report.meet()
            started = True
    if mesh:
        with report.check("rows") as check:
            rows(check, settings, mesh)
    return started, mesh


def rows(check: Check, settings: Settings, mesh: Mesh) -> None:
    """Checks that rows can be divided as the recipe wants, and that each process holds its own.

    Raises:
      ConfigError: if they can't be divided.
    """
    sampling = sampling_mesh(settings.devices, mesh)
    share, parts = sharding.data_share(mesh), sharding.row_parts(mesh)
    checks.rows(
        settings,
        row_parts=parts,
        sampling_parts=sharding.row_parts(sampling),
        shares=share.count,
        processes=jax.process_count(),
    )
    numbers = sharding.local_row_numbers(parts, mesh).astype(np.int32)
    everywhere = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))
    found = np.asarray(everywhere(sharding.place_rows(numbers, mesh)))
    if not np.array_equal(found, np.arange(parts)):
        check.problem(
            f"devices hold the rows {found.tolist()} in place of 0 to {parts - 1}; check the "
            "network between hosts, and that all run the same version"
        )
        return
    axes = " × ".join(f"{name} {size}" for name, size in mesh.shape.items())
    each = f", {share.count} shares read" if share.count > 1 else ""
    check.ok(f"mesh {axes}: {settings.examples_at_once // share.count} examples a step{each}")


def _compute(
    report: Report,
    settings: Settings,
    workdir: Place | None,
    model: str,
    sizes: ModelConfig,
    mesh: Mesh,
    compiled: bool | None,
) -> None:
    """Looks at all that needs the devices and the model's sizes.

    Args:
      report: where checks are reported.
      settings: the recipe.
      workdir: the run's folder; None if it can't be used.
      model: a published model's name, or a folder with the model's config.json.
      sizes: the model.
      mesh: the training mesh.
      compiled: see `examine`.
    """
    with report.check("attention") as check:
        hardware.attention(check, settings.model, sizes, mesh)
    known = dataclasses.replace(settings, model=dataclasses.replace(settings.model, path=model))
    if workdir:
        with report.check("checkpoints") as check:
            if processes.is_first():  # the folder is the same for all
                places.room(check, run_shapes(known, mesh), workdir)
    else:
        report.skip("checkpoints", "the workdir can't be used")
    if compiled is None:
        compiled = jax.default_backend() != "cpu"
    with report.check("memory", patience=_COMPILING if compiled else None) as check:
        free = memory.Memory(*min(processes.gather(memory.of_devices())))
        memory.fits(check, settings, model, mesh, compiled=compiled, memory=free)
    folder = workdir or pathlib.Path(tempfile.gettempdir())
    if workdir is None and jax.process_count() > 1:
        report.skip("steps", "the workdir can't be used")
        return
    if processes.is_first():
        say("steps: compiling small SFT and GRPO programs, up to a minute or two")
    name = processes.gather(f"doctor-{uuid.uuid4().hex}")[0]
    with report.check("steps", patience=_COMPILING) as check:
        steps.run(check, settings, sizes, mesh, folder / name)
