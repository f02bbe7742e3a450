"""Time and decoding steps of answering questions, with slots that are kept full and in batches.

"slots" is `Predictor.predict`, as in an evaluation. "batches" sorts the same prompts by length and
samples as many at once as there are slots; each batch runs until its longest answer has ended. Both
read the images.
"""

import pathlib
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from benchmarks.side_by_side import Variant
from configs import sft_tiny
from mirg_jax import sharding
from mirg_jax.data.batching import collate_prompts
from mirg_jax.data.examples import Example
from mirg_jax.data.pipeline import threads_of_this_machine
from mirg_jax.inference.predictor import Predictor
from mirg_jax.mig_bench.benchmark import as_example, load_benchmark
from mirg_jax.runs import devices
from mirg_jax.runs.settings import Settings, read
from mirg_jax.sampling.sampler import SamplingConfig, make_sampler, sample_keys
from mirg_jax.sampling.tokens import forbidden_ids, stop_ids
from mirg_jax.scenes.scene_tasks import write_dataset

QUESTIONS = 770  # as in the demo
_SEED = 1000  # the demo's evaluation


class _Batches:
    """Answers in batches, and how long they were."""

    def __init__(
        self, predictor: Predictor, settings: Settings, examples: list[Example], root: str
    ):
        self._mesh = mesh = devices.start(settings.devices)
        self._params, self._shapes = predictor.model.params, settings.data.shapes
        self._rows = sharding.whole_rows(settings.evaluation.batch_size, mesh)
        self._prepare = settings.preparer(predictor.tokenizer, with_response=False, image_root=root)
        self._examples = examples
        model, tokenizer = predictor.model, predictor.tokenizer
        config = SamplingConfig(
            max_tokens=predictor.max_tokens,
            temperature=0.0,
            stop_tokens=stop_ids(tokenizer, model.config.end_tokens),
        )
        forbidden = forbidden_ids(tokenizer, model.config.text.vocab_size)
        self._sample = make_sampler(model.graph, mesh, forbidden, config)
        self.tokens: dict[int, list[int]] = {}
        self.steps = 0

    def run(self) -> None:
        self.steps = 0
        with ThreadPoolExecutor(threads_of_this_machine()) as pool:
            items = list(enumerate(pool.map(self._prepare, self._examples)))
        items.sort(key=lambda pair: len(pair[1].encoded.tokens))
        for at in range(0, len(items), self._rows):
            part = items[at : at + self._rows]
            batch = collate_prompts([item for _, item in part], self._shapes, self._rows)
            keys = sample_keys(jax.random.key(0), jax.numpy.arange(self._rows), 1)
            text, images = sharding.place_rows((batch.text, batch.images), self._mesh)
            found = self._sample(self._params, text, images, keys)
            tokens, mask = jax.device_get((found.tokens[:, 0], found.mask[:, 0]))
            self.steps += int(mask.sum(-1).max())
            for (number, _), row, kept in zip(part, tokens, mask, strict=False):
                self.tokens[number] = row[kept].tolist()


def answers(model: str, count: int = QUESTIONS) -> Iterator[Variant]:
    """The demo's evaluation of a model: its run, or a Hugging Face folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_dataset(folder, seed=_SEED, sft=0, rl=0, evaluation=count)
        path = str(folder / "eval.json")
        examples = [(row.index, as_example(row, path)) for row in load_benchmark(path)]
        settings = read(sft_tiny.get_config())
        predictor = Predictor.open(model, settings, image_root=folder)
        batches = _Batches(predictor, settings, [each for _, each in examples], str(folder))
        texts: dict[int, str] = {}

        def slots():
            texts.update({number: text for number, text, _ in predictor.predict(examples)})

        def equal_texts() -> float:
            decode = predictor.tokenizer.decode
            said = {n: decode(tokens) for n, tokens in batches.tokens.items()}
            return float(np.mean([said[number] == text for number, text in texts.items()]))

        lengths = batches.tokens.values
        yield Variant(
            f"{count} questions, {settings.evaluation.batch_size} at once",
            {"slots": slots, "batches": batches.run},
            {
                "tokens": lambda: sum(map(len, lengths())),
                "longest": lambda: max(map(len, lengths())),
                "steps": lambda: {"slots": predictor.steps, "batches": batches.steps},
                "rows_times_steps_over_tokens": lambda: {
                    way: settings.evaluation.batch_size * steps / sum(map(len, lengths()))
                    for way, steps in (("slots", predictor.steps), ("batches", batches.steps))
                },
                "equal_texts": equal_texts,
            },
        )


CASES = {"answers": answers}
