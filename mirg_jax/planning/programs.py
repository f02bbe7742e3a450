"""The jitted programs of a recipe's step with abstract arguments; no arrays are allocated."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from mirg_jax import sharding
from mirg_jax.data.batching import PackedBatch
from mirg_jax.inference import rows as inference_rows
from mirg_jax.models import int8
from mirg_jax.models.layers import Precision
from mirg_jax.planning import shapes
from mirg_jax.planning.schedule import Trips
from mirg_jax.planning.shapes import RunShapes, run_shapes
from mirg_jax.runs import checks
from mirg_jax.runs.devices import sampling_mesh, training_mesh
from mirg_jax.runs.settings import Settings
from mirg_jax.sampling.pool import make_feeding
from mirg_jax.sampling.sampler import SamplingConfig, make_sampler, stage_limits
from mirg_jax.sampling.weights import make_weights, taken_as_they_are, weight_shapes
from mirg_jax.sharding.memory import Accumulator, with_resident
from mirg_jax.training import grpo_programs as learning
from mirg_jax.training import rollouts, sft
from mirg_jax.training.grpo_programs import Experience, PolicyOptions, Totals
from mirg_jax.training.optimizer import make_update


class Program(NamedTuple):
    """A jitted function with the shapes of its arguments."""

    name: str
    mesh: jax.sharding.Mesh
    function: Any
    arguments: tuple  # shapes with shardings
    parts: dict[str, Any]  # all arrays on the devices while it runs, by part
    apart: Any = ()  # those of them that are neither arguments nor results
    calls: int = 1  # in a step
    trips: Trips | None = None  # of its decoding loops, to completions of the longest length


def _updates(
    run: RunShapes, gradients: Accumulator, outputs, arguments, resident: dict, micro_batches: int
):
    """Yields the two programs that SFT and GRPO share: gradients, and the optimizer's update.

    Args:
      run: the abstract arrays of the run.
      gradients: what accumulates the gradients.
      outputs: shapes of the loss and its statistics.
      arguments: shapes of the gradient function's arguments.
      resident: other arrays on the devices, by part.
      micro_batches: number of micro-batches per step.
    """
    parts = {"weights": (run.params, run.frozen), "optimizer": run.state.opt_state, **resident}
    grads = run.params
    others = sharding.resident((run.state.opt_state, resident.get("reference")))
    passes, updates = run.settings.passes, run.settings.updates_per_step
    summands = micro_batches * passes // updates  # of an update
    total = (outputs, grads) if summands > 1 else None
    summed = {"gradients": (grads,) * min(summands, 2)}  # the sum so far, and the new ones
    given = total, others, *arguments
    held = resident["batch"] if isinstance(resident["batch"], list) else [resident["batch"]]
    yield Program(
        "gradients",
        run.mesh,
        gradients.add,
        given,
        parts | summed,
        apart=held[1:],
        calls=micro_batches * passes,
    )
    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding.on_devices(leaf.sharding)
        ),
        run.state,
    )
    update = make_update(run.optimizer, jax.tree.map(lambda leaf: leaf.sharding, state))
    arguments = state, grads, shapes.array(run.mesh, (), np.float32)
    apart = run.frozen, list(resident.values())
    parts |= {"optimizer": state.opt_state, "gradients": grads}
    yield Program("update", run.mesh, update, arguments, parts, apart, calls=updates)


def sft_programs(settings: Settings, devices: list) -> Iterator[Program]:
    """Yields the programs of an SFT step."""
    run = run_shapes(settings, training_mesh(settings.devices, devices))
    rows = settings.micro_batch
    batch = shapes.batch_shapes(settings.data.shapes, rows, run.mesh)
    gradients = sft.make_gradients(run.graph, run.layout, settings.logprob_chunk)
    scalar = shapes.array(run.mesh, (), np.float32)
    arguments = run.params, run.frozen, batch, scalar
    micro_batches = -(-settings.batch_size // rows)
    yield from _updates(run, gradients, scalar, arguments, {"batch": batch}, micro_batches)


# GRPO ---------------------------------------------------------------------------------------------


class Beside(NamedTuple):
    """What stays on the devices during a whole GRPO step, by part."""

    weights: Any
    optimizer: Any
    reference: Any
    head: Any  # the reference's output head, for the exact penalty
    experiences: list[Experience]  # of a step; the next one's sampling begins beside them
    pool: list[Experience]  # sampled before the last call; none unless groups are chosen from more

    def parts(self) -> dict[str, Any]:
        """Returns the arrays by part; the reference's head and the pool only if there is one."""
        parts = {name: getattr(self, name) for name in ("weights", "optimizer", "reference")}
        parts["experiences"] = self.experiences
        parts |= {} if self.head is None else {"reference head": self.head}
        return parts | ({"pool": self.pool} if self.pool else {})


def sampling_model(run: RunShapes) -> tuple[nnx.GraphDef, nnx.State]:
    """Returns the graph and the parameters' shapes of the model that samples."""
    if run.settings.grpo.int8_sampling:
        return int8.attach(run.graph, run.everything)
    return run.graph, run.everything


def weights_program(run: RunShapes, mesh: jax.sharding.Mesh, beside: Beside) -> Program | None:
    """Returns the program that makes the weights for sampling; None if they are taken as they are.

    Args:
      run: the abstract arrays of the run.
      mesh: the sampling mesh.
      beside: what else lies on the devices.
    """
    everything, compute = run.everything, run.settings.model.precision.compute
    _, kinds = sampling_model(run)
    is_int8 = run.settings.grpo.int8_sampling
    wanted = weight_shapes(kinds, compute, mesh)
    if not is_int8 and taken_as_they_are(everything, wanted):
        return None
    convert = make_weights(everything, compute, mesh, kinds if is_int8 else None)
    parts = beside.parts() | {"sampling weights": wanted}
    apart = [part for name, part in beside.parts().items() if name != "weights"]
    return Program("weights", mesh, convert, (everything,), parts, apart)


def tower_program(run: RunShapes, own: Any, beside: Beside) -> Program | None:
    """Returns the program that encodes a micro-batch's images; None unless the tower is frozen.

    Args:
      run: the abstract arrays of the run.
      own: the sampler's weights, unless they are the run's.
      beside: what else lies on the devices.
    """
    settings, mesh = run.settings, run.mesh
    if not settings.tower_is_frozen:
        return None
    count = settings.sampled_prompts // settings.micro_batch
    call = shapes.batch_shapes(settings.data.shapes, settings.sampled_prompts, mesh)
    images = shapes.batch_shapes(settings.data.shapes, settings.micro_batch, mesh).images
    visual = shapes.visual_shapes(run, images, mesh)
    whole = call.images if count > 1 else ()  # beside its parts
    see = jax.jit(
        functools.partial(rollouts.see, graph=run.graph), out_shardings=sharding.by_rows(mesh)
    )
    everything = run.everything
    unused = {name: part for name, part in everything.items() if name != "visual"}
    parts = beside.parts() | {
        "sampling weights": own,
        "batch": (call.text, whole, [images] * count, [visual] * count),
    }
    others = [part for name, part in beside.parts().items() if name != "weights"]
    apart = unused, others, own, call.text, whole, [images, visual] * (count - 1)
    calls = settings.examples_at_once // settings.micro_batch
    return Program("tower", mesh, see, (everything, images), parts, apart, calls)


def sampling_program(
    run: RunShapes, batch: PackedBatch, options: SamplingConfig, own: Any, beside: Beside
) -> Program:
    """Returns the sampling program of GRPO.

    Args:
      run: the abstract arrays of the run.
      batch: shapes of the prompts on the sampling mesh.
      options: the sampling options.
      own: the sampler's weights, unless they are the run's.
      beside: what else lies on the devices.
    """
    mesh, group = batch.text.tokens.sharding.mesh, options.group
    everything = run.everything
    compute = run.settings.model.precision.compute
    graph, kinds = sampling_model(run)
    weights = weight_shapes(kinds, compute, mesh)
    sampler = make_sampler(graph, mesh, np.zeros(run.model.text.vocab_size, bool), options)
    key = jax.eval_shape(lambda: jax.random.key(0)).dtype
    rows, length = batch.text.tokens.shape
    keys = jax.ShapeDtypeStruct(
        (rows, group), key, sharding=NamedSharding(mesh, PartitionSpec(sharding.ROWS))
    )
    text = run.model.text
    heads = (options.slots * sharding.row_parts(mesh) or rows, text.num_kv_heads)
    where = sharding.spec(("rows", "heads"), heads, mesh.shape, sharding.GATHERED)
    tokens = length + group * options.max_tokens
    cache = shapes.array(
        mesh,
        (*heads, 2 * text.num_layers * tokens * text.head_dim),
        compute,
        *where,
    )
    parts = {"sampling weights": own, "batch": batch, "cache": cache, **beside.parts()}
    resident = sharding.resident_on(
        (beside.optimizer, beside.reference, everything if own else None), mesh
    )
    arguments = resident, weights, batch.text, batch.images, keys
    return Program(
        "sample",
        mesh,
        with_resident(sampler),
        arguments,
        parts,
        apart=(beside.head, beside.experiences, beside.pool),
        calls=run.settings.examples_at_once // rows,
        trips=decoding_trips(rows // sharding.row_parts(mesh), options),
    )


def decoding_trips(prompts: int, options: SamplingConfig) -> Trips:
    """Returns how often the sampler's loops run if all completions have the longest length.

    Args:
      prompts: prompts of a group of devices.
      options: the sampling options.
    """
    longest, slots = options.max_tokens, options.slots or prompts
    if slots == prompts:
        return Trips(steps=longest / len(stage_limits(longest)))
    refills = prompts - slots
    more = longest * (-(-prompts // slots) - 1)
    return Trips(steps=longest, refills=refills, between=max(more / refills, 1))


def rollout_programs(run: RunShapes, mesh: jax.sharding.Mesh, beside: Beside) -> Iterator[Program]:
    """Yields the programs of a rollout: the sampler's weights, the vision tower, the sampler.

    Args:
      run: the abstract arrays of the run.
      mesh: the sampling mesh.
      beside: what else lies on the devices.
    """
    settings = run.settings
    weights = weights_program(run, mesh, beside)
    own = {} if weights is None else weights.parts["sampling weights"]
    if weights is not None:
        yield weights
    if tower := tower_program(run, own, beside):
        yield tower
    prompts = shapes.batch_shapes(settings.data.shapes, settings.sampled_prompts, mesh)
    prompts = prompts._replace(images=shapes.visual_shapes(run, prompts.images, mesh))
    parts = sharding.row_parts(mesh)
    options = rollouts.sampling_config(settings.grpo, parts, stops=(0, 1))
    yield sampling_program(run, prompts, options, own, beside)


def reference_program(run: RunShapes, policy: PolicyOptions, beside: Beside) -> Program:
    """Returns the program of the reference policy's values for a micro-batch."""
    options = policy._replace(graph=run.model_graph)
    function = with_resident(functools.partial(learning.reference_values, options=options))
    resident = sharding.resident((run.params, run.state.opt_state))
    weights = nnx.merge_state(beside.reference, run.frozen) if beside.reference else run.frozen
    one = beside.experiences[0]
    arguments = resident, weights, one.prompt, one.images, one.rollout
    parts = beside.parts()
    parts["batch"] = parts.pop("experiences")
    apart = beside.head, one.advantages, beside.experiences[1:]
    return Program(
        "reference", run.mesh, function, arguments, parts, apart, len(beside.experiences)
    )


def policy_program(run: RunShapes, policy: PolicyOptions, beside: Beside) -> Program:
    """Returns the program of the learner's own values before its updates, for a micro-batch."""
    function = with_resident(functools.partial(learning.policy_values, options=policy))
    one = beside.experiences[0]
    resident = sharding.resident((run.state.opt_state, beside.reference))
    arguments = resident, run.everything, one.prompt, one.images, one.rollout
    parts = beside.parts()
    parts["batch"] = parts.pop("experiences")
    apart = beside.head, one.advantages, one.reference, beside.experiences[1:]
    return Program("policy", run.mesh, function, arguments, parts, apart, len(beside.experiences))


def grpo_programs(settings: Settings, devices: list) -> Iterator[Program]:
    """Yields the programs of a GRPO step in their order.

    What only moves or counts rows is omitted: keys, rewards, advantages.

    Raises:
      ConfigError: if the rows can't be divided over the devices.
    """
    rows, mesh = settings.micro_batch, training_mesh(settings.devices, devices)
    there = sampling_mesh(settings.devices, mesh)
    row_parts, sampling_parts = sharding.row_parts(mesh), sharding.row_parts(there)
    checks.rows(settings, row_parts=row_parts, sampling_parts=sampling_parts, shares=1, processes=1)
    run = run_shapes(settings, mesh)
    experience, head = shapes.experience_shapes(run, rows)
    micro_batches = settings.batch_size // rows
    held = [experience] * micro_batches
    reference = shapes.reference_shapes(run)
    pool = shapes.pool_shapes(run)
    beside = Beside((run.params, run.frozen), run.state.opt_state, reference, head, held, pool)
    yield from rollout_programs(run, there, beside)
    beside = beside._replace(pool=[])
    forbidden = np.zeros(run.model.text.vocab_size, bool)
    policy = PolicyOptions(run.graph, forbidden, settings.grpo, settings.logprob_chunk)
    if settings.grpo.beta:
        yield reference_program(run, policy, beside)
    if settings.grpo.takes_policy_before:
        yield policy_program(run, policy, beside)
    scalar = shapes.array(mesh, (), np.float32)
    others = {"batch": held, "reference": reference}
    if head is not None:
        others["reference head"] = head
    gradients = learning.make_gradients(run.layout, policy)
    arguments = run.params, run.frozen, experience, Totals(scalar, scalar), head
    outputs = scalar, dict.fromkeys(learning.statistics(settings.grpo), scalar)
    yield from _updates(run, gradients, outputs, arguments, others, micro_batches)


def inference_programs(settings: Settings, devices: list) -> Iterator[Program]:
    """Yields the program of inference, as in `scripts/evaluate.py`."""
    whole = training_mesh(settings.devices, devices)
    mesh = sampling_mesh(settings.devices, whole)
    compute = settings.model.precision.compute
    model = dataclasses.replace(settings.model, precision=Precision(compute, compute))
    run = run_shapes(dataclasses.replace(settings, model=model), mesh)
    weights = weight_shapes(run.everything, compute, mesh)
    evaluation, sizes = settings.evaluation, settings.data.shapes
    sampling = SamplingConfig(max_tokens=evaluation.max_tokens, stop_tokens=(0, 1))
    forbidden = np.zeros(run.model.text.vocab_size, bool)
    feeding = make_feeding(run.graph, mesh, forbidden, sampling, run.model.text.num_kv_heads)
    memory = inference_rows.memory_of(devices[0])
    rows = inference_rows.at_once(
        evaluation.batch_size, memory, feeding, weights, (), sizes, whole, mesh
    )
    text, images = inference_rows.largest_prompts(sizes, rows, mesh)
    pool = feeding.open.eval_shape(weights, text, images)
    more = shapes.array(mesh, (), bool)
    arguments = (), weights, pool, text, images, shapes.by_rows(mesh, rows), more
    parts = {"sampling weights": weights, "batch": (text, images), "slots": pool}
    # With all slots taken before, each is filled anew once a call.
    slots = rows // sharding.row_parts(mesh)
    trips = Trips(steps=0, refills=slots, between=max(evaluation.max_tokens / slots, 1))
    yield Program("sample", mesh, feeding.feed, arguments, parts, trips=trips)


PROGRAMS = {"sft": sft_programs, "grpo": grpo_programs, "inference": inference_programs}


def programs(settings: Settings, devices: list) -> Iterator[Program]:
    """Returns the programs of the recipe's stage."""
    settings = settings.for_model(shapes.model_config(settings.model.path))
    return PROGRAMS[settings.stage](settings, devices)
