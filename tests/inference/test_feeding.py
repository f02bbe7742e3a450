"""Answers of full slots: those of one call of the sampler for all questions, in fewer steps."""

import json

import jax
import pytest
from conftest import call

from configs import grpo_tiny
from mirg_jax import sharding
from mirg_jax.data.batching import collate_prompts
from mirg_jax.evaluation import evaluate
from mirg_jax.evaluation.predictions import Predictions
from mirg_jax.inference import predictor as predictors
from mirg_jax.inference import rows
from mirg_jax.inference.predictor import Predictor
from mirg_jax.mig_bench.benchmark import as_example, load_benchmark
from mirg_jax.runs import chips
from mirg_jax.runs.settings import read
from mirg_jax.sampling.sampler import SamplingConfig, make_sampler, sample_keys
from mirg_jax.sampling.tokens import decode, forbidden_ids, stop_ids
from mirg_jax.scenes import scene_tasks

QUESTIONS, SLOTS, TOKENS, SHORT = 40, 4, 60, 44
BASE = grpo_tiny.get_config().model.path


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    scene_tasks.write_dataset(folder, seed=7, sft=0, rl=0, evaluation=QUESTIONS)
    return folder


def settings_of(**changes):
    config = grpo_tiny.get_config()
    config.cpu_devices = 0
    # Two padded lengths, between which slots are emptied.
    config.data.shapes.lengths = (SHORT, 96)
    config.evaluation.update(max_tokens=TOKENS, batch_size=SLOTS)
    config.update_from_flattened_dict(changes)
    return read(config)


@pytest.fixture(scope="module")
def predictor(drawn):
    return Predictor.open(BASE, settings_of(), image_root=drawn)


@pytest.fixture(scope="module")
def examples(drawn):
    path = str(drawn / "eval.json")
    return [(row.index, as_example(row, path)) for row in load_benchmark(path)]


def sampled_at_once(predictor, examples, drawn, **options):
    """The texts of all questions and their numbers of tokens, sampled at once."""
    model, tokenizer, settings = predictor.model, predictor.tokenizer, settings_of()
    prepare = settings.preparer(tokenizer, with_response=False, image_root=drawn)
    items = [prepare(example) for _, example in examples]
    mesh = sharding.make_mesh()
    options = SamplingConfig(stop_tokens=stop_ids(tokenizer, model.config.end_tokens), **options)
    forbidden = forbidden_ids(tokenizer, model.config.text.vocab_size)
    batch = collate_prompts(items, settings.data.shapes, len(items))
    numbers = jax.numpy.array([number for number, _ in examples])
    keys = sample_keys(jax.random.key(0), numbers, options.group)
    given = sharding.place_rows((batch.text, batch.images, keys), mesh)
    sampled = make_sampler(model.graph, mesh, forbidden, options)(model.params, *given)
    _, mask, _ = sampled = jax.device_get(sampled)
    return decode(tokenizer, sampled.tokens, mask), mask.sum(-1)[:, 0], items


@pytest.fixture(scope="module")
def expected(predictor, examples, drawn):
    given = {"max_tokens": TOKENS, "temperature": 0.0}
    texts, lengths, items = sampled_at_once(predictor, examples, drawn, **given)
    assert 8 < sum(len(item.encoded.tokens) <= SHORT for item in items) < 32
    return texts, lengths


@pytest.mark.slow
def test_several_answers_to_a_question_are_those_of_a_group(drawn, examples, tiny_model):
    """Numbered from the question's number times 3 on, whatever row and call they come from."""
    given = {"max_tokens": 8, "temperature": 1.0}
    settings = settings_of(**{"data.shapes.lengths": (96,)})
    predictor = Predictor.open(tiny_model, settings, image_root=drawn, samples=3, **given)
    asked = [(number + 100, example) for number, example in examples[:5]]
    missing = asked[1][1].__class__("x", "diff", ("nowhere.png",), "Where?", ())
    found = {index: (text, error) for index, text, error in predictor.predict(
        [*asked, (7, missing)]
    )}  # fmt: skip
    texts, *_ = sampled_at_once(predictor, asked, drawn, group=3, **given)
    expected = {(100 + n // 3) * 3 + n % 3: (text, None) for n, text in enumerate(texts)}
    assert len(set(texts)) > 5
    assert {index: found.pop(index) for index in (21, 22, 23)}.keys() == {21, 22, 23}
    assert found == expected


def test_full_slots_change_no_answer_and_take_fewer_steps(
    predictor, examples, expected, monkeypatch
):
    texts, lengths = expected
    monkeypatch.setattr(predictors, "_WINDOW", 16)
    found = [prediction for prediction in predictor.predict(examples)]
    assert sorted(prediction.index for prediction in found) == list(range(QUESTIONS))
    assert [answer.response for answer in sorted(found)] == texts
    assert len(set(lengths)) > 5
    batches = lengths.reshape(-1, SLOTS).max(axis=1).sum()
    assert lengths.sum() / SLOTS < predictor.steps < batches


def test_two_devices_give_the_answers_of_one(drawn, expected, tmp_path):
    texts, _ = expected
    done = call(
        "evaluate",
        "--config=configs/grpo_tiny.py",  # on two devices
        f"--checkpoint={BASE}",
        f"--benchmark={drawn}/eval.json",
        f"--image_root={drawn}",
        f"--output_dir={tmp_path}",
        f"--config.evaluation.max_tokens={TOKENS}",
        "--config.evaluation.batch_size=8",
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").open()]
    assert [row["response"] for row in sorted(lines, key=lambda row: row["index"])] == texts


def test_a_killed_evaluation_goes_on_with_what_it_has(drawn, expected, tmp_path, monkeypatch):
    texts, _ = expected
    given = {
        "checkpoint": BASE,
        "benchmark": str(drawn / "eval.json"),
        "image_root": str(drawn),
        "output_dir": tmp_path,
    }
    add, asked = Predictions.add, []

    def add_some(self, index, response, **more):
        asked.append(index)
        if len(asked) == 12:
            raise KeyboardInterrupt
        add(self, index, response, **more)

    monkeypatch.setattr(Predictions, "add", add_some)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(settings_of(), **given)
    before = (tmp_path / "predictions.jsonl").read_text()
    assert before.count("\n") == 11
    evaluate.run(settings_of(), **given)
    after = (tmp_path / "predictions.jsonl").read_text()
    lines = [json.loads(line) for line in after.splitlines()]
    assert after.startswith(before) and len(asked) == 12 + QUESTIONS - 11
    assert [row["response"] for row in sorted(lines, key=lambda row: row["index"])] == texts


@pytest.mark.parametrize(
    ("free", "expected"), [(-5, 1), (1, 1), (19, 1), (40, 2), (79, 2), (1279, 32), (10**9, 64)]
)
def test_half_of_the_memory_left_is_for_rows(free, expected):
    assert rows.that_fit(row=10, free=free) == expected


def test_rows_are_by_the_devices_and_their_memory(predictor):
    one = sharding.make_mesh()
    shapes, weights = settings_of().data.shapes, predictor.model.params
    feeding = predictor._feeding

    def at_once(wanted, memory, resident=(), mesh=one):
        return rows.at_once(wanted, memory, feeding, weights, resident, shapes, mesh, mesh)

    assert at_once(0, None) == rows.CPU_ROWS and at_once(5, None) == at_once(5, 1e12) == 5
    held = rows.bytes_per_device(weights)
    row = rows.bytes_of_row(feeding, weights, shapes, one)
    text = predictor.model.config.text
    values = 2 * 4 * text.num_layers * text.num_kv_heads * text.head_dim * (96 + TOKENS)
    assert values + 3 * 16 * 588 < row < 2 * (values + 3 * 16 * 588 + 4 * text.vocab_size)
    assert at_once(0, held + 2 * 8 * row) == 8 and at_once(0, held + 2 * 8 * row - 1) == 4
    assert at_once(0, 2 * held + 2 * 8 * row, weights) == 8
    assert at_once(0, 1e15) == rows.MOST_ROWS
    assert rows.memory_of(jax.devices()[0]) is None


def test_a_device_s_memory_is_what_its_runtime_gives_or_its_vendor_says():
    class Device:
        platform, device_kind, stats = "gpu", "NVIDIA H100 80GB HBM3", None

        def memory_stats(self):
            if isinstance(self.stats, Exception):
                raise self.stats
            return self.stats

    device = Device()
    assert rows.memory_of(device) == chips.CHIPS["h100"].memory * 2**30
    device.stats = {"bytes_limit": 10_000}
    assert rows.memory_of(device) == 10_000
    device.device_kind, device.stats = "another", NotImplementedError()
    assert rows.memory_of(device) is None


def test_few_questions_take_few_rows_of_few_sizes():
    mesh = sharding.make_mesh()
    used = {count: rows.for_questions(count, 64, mesh) for count in range(1, 100)}
    assert used[1] == 1 and used[2] == used[4] == 4 and used[5] == 16
    assert used[17] == used[64] == used[99] == 64 and len(set(used.values())) == 4
    assert rows.for_questions(3, 6, mesh) == 6 and rows.for_questions(2, 6, mesh) == 2
