"""The policy's greedy answers to held-out questions, while it is trained."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from mirg_jax.data.examples import Rejected
from mirg_jax.errors import ConfigError
from mirg_jax.inference.predict import make_generate, predict
from mirg_jax.mig_bench import benchmark, scoring
from mirg_jax.runs.train_state import TrainState
from mirg_jax.sampling.weights import make_weights
from mirg_jax.training import setup


def load_benchmark(config: ConfigDict) -> list[benchmark.Row]:
    """The rows that a run is evaluated on; none where it isn't.

    Raises:
      UserError: for a benchmark that can't be read.
    """
    if not config.evaluation.every:
        return []
    if not config.evaluation.benchmark:
        raise ConfigError("evaluation.every is set, but not evaluation.benchmark: name its file")
    return benchmark.load_benchmark(config.evaluation.benchmark)


class HeldOut:
    """Asks the rows of `config.evaluation.benchmark` every so many steps, and after the last."""

    def __init__(
        self,
        run: setup.Run,
        config: ConfigDict,
        workdir: pathlib.Path,
        rows: Sequence[benchmark.Row],
        *,
        write: bool,
    ):
        """
        Args:
          rows: of `load_benchmark`.
          write: whether this process writes the answers, WORKDIR/held_out/step_NNNNNN.jsonl.
        """
        how = config.evaluation
        self._every, self._last = how.every, config.num_steps
        if not how.every:
            return
        self._rows = benchmark.choose(rows, how.limit)
        self._questions = [
            (row.index, benchmark.as_example(row, how.benchmark)) for row in self._rows
        ]
        self._how, self._write, self._run = how, write, run
        self._folder = workdir / "held_out"
        self._mesh = setup.sampling_mesh(config, run.mesh)
        preparer = setup.make_preparer(config, run.tokenizer, with_response=False)
        self._preparer = dataclasses.replace(preparer, image_root=how.image_root)
        self._weights_of = make_weights(
            nnx.merge_state(run.state.params, run.frozen),
            config.model.compute_dtype,
            self._mesh,
        )
        self._model = run.model._replace(graph=run.graph, params=None)
        self._generate = make_generate(
            self._model, run.tokenizer, self._mesh, max_tokens=how.max_tokens
        )

    def due(self, step: int) -> bool:
        """Whether to evaluate when so many steps are taken."""
        return self._every > 0 and (step % self._every == 0 or step == self._last)

    def evaluate(
        self, step: int, state: TrainState, frozen: nnx.State, copies: Any = None
    ) -> dict[str, float]:
        """Scores by the `answer` protocol, for the log; `eval_acc` is Acc@0.5 over all rows.

        Args:
          copies: what else lies on the devices.
        """
        everything = nnx.merge_state(state.params, frozen)
        weights = self._weights_of(everything)
        others = state.opt_state, copies, None if weights is everything else everything
        answers = predict(
            self._model._replace(params=weights),
            self._run.tokenizer,
            self._preparer,
            self._mesh,
            self._questions,
            batch_size=self._how.batch_size,
            max_tokens=self._how.max_tokens,
            generate=functools.partial(self._generate, others=others),
        )
        responses: dict[int, str | None] = {row.index: None for row in self._rows}
        for index, response, error in answers:
            responses[index] = response
            if error:
                row = Rejected(f"{self._how.benchmark} row {index}", str(index), error)
                self._run.rejected.add(row, told=True)
        if self._write:
            self._folder.mkdir(exist_ok=True)
            lines = [
                json.dumps({"index": index, "response": response}) + "\n"
                for index, response in responses.items()
                if response is not None
            ]
            (self._folder / f"step_{step:06d}.jsonl").write_text("".join(lines))
        overall = scoring.score(self._rows, list(responses.values())).overall
        found = {
            "eval_acc": overall.hit_rate,
            "eval_mean_iou": overall.mean_iou,
            "eval_image_acc": overall.image_accuracy,
            "eval_format": overall.format_rate,
        }
        return {name: value for name, value in found.items() if value is not None}
