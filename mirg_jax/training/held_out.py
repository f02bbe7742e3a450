"""Evaluation of the policy on held-out questions during training, with greedy decoding."""

import json
from typing import Any

from flax import nnx

from mirg_jax.data.examples import Rejected
from mirg_jax.data.image_hashes import ImageHashes
from mirg_jax.data.images import ImageRoot, image_size
from mirg_jax.errors import ConfigError, DataError
from mirg_jax.files import outputs
from mirg_jax.files.streams import Spare
from mirg_jax.inference.predictor import Predictor
from mirg_jax.mig_bench import benchmark, scoring
from mirg_jax.runs import facts, run_folder
from mirg_jax.runs.loading import Model
from mirg_jax.runs.train_state import TrainState
from mirg_jax.sampling.weights import make_weights
from mirg_jax.training.start import TrainingRun
from mirg_jax.training.usable import why_unreadable


class HeldOut:
    """Evaluates on `evaluation.benchmark` every `evaluation.every` steps and after the last step.

    The responses are written to WORKDIR/held_out/step_NNNNNN.jsonl.
    """

    def __init__(self, run: TrainingRun, resident: Any):
        """Prepares the questions and the sampler; without evaluation, nothing.

        Args:
          run: the run.
          resident: arrays on the devices besides the training state and the frozen parameters.
        """
        self._run, self._resident = run, resident
        self._settings = settings = run.settings.evaluation
        self._spare = Spare(f"{run.workdir / 'held_out'}")
        if not settings.every:
            return
        self._rows = benchmark.choose(run.benchmark, settings.limit)
        self._questions = [
            (row.index, benchmark.as_example(row, settings.benchmark, direct=settings.direct))
            for row in self._rows
        ]
        root = run.settings.data.root(settings.image_root)
        if problem := why_unreadable((row.images for row in self._rows), root, image_size):
            raise DataError(
                f"no held-out row can be used; the first: {problem}; set evaluation.image_root"
            )
        self._claim_questions(root)
        self._weights_of = make_weights(
            nnx.merge_state(run.state.params, run.frozen),
            run.settings.model.precision.compute,
            run.sampling_mesh,
        )
        self._predictor = Predictor(
            Model(run.model, run.graph, None, run.workdir),
            run.tokenizer,
            run.mesh,
            run.sampling_mesh,
            run.settings.preparer(
                run.tokenizer, with_response=False, image_root=settings.image_root
            ),
            batch_size=settings.batch_size,
            max_tokens=settings.max_tokens,
        )

    def _claim_questions(self, root: ImageRoot) -> None:
        """Records what held-out accuracies depend on; those of all steps are compared.

        Args:
          root: the root of the questions' images.

        Raises:
          ConfigError: if the run was evaluated on other questions before.
          CheckpointError: if the record of them can't be read.
        """
        run, settings = self._run, self._settings
        path = run.workdir / "held_out/questions.json"
        now = {
            "benchmark_sha256": facts.hash_rows(settings.benchmark),
            "limit": settings.limit,
            "max_tokens": settings.max_tokens,
            **facts.of_inputs(run.settings),
        }
        # If one is missing, none is compared.
        if images := ImageHashes(root).of_rows(row.images for row in self._rows):
            now["images"] = images
        found = None
        if run.first_step:
            what = "held-out questions"
            found = run_folder.read_record(path, run_folder.as_object, what)
        if found is not None:
            if changes := facts.describe_changes(found, now):
                raise ConfigError(
                    f"{run.workdir}: its held-out accuracies are of other questions "
                    f"({'; '.join(changes)}); keep config.evaluation, or give another --workdir"
                )
        elif run.is_first:
            self._spare(self._write, path.name, json.dumps(now, indent=1) + "\n")

    def due(self, step: int) -> bool:
        """Returns whether to evaluate after `step` steps."""
        every, last = self._settings.every, self._run.settings.num_steps
        return every > 0 and (step % every == 0 or step == last)

    def evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        """Answers the held-out questions and scores the answers by the `answer` protocol.

        Args:
          step: number of steps taken.
          state: the training state.

        Returns:
          Metrics by name; `eval_acc` is Acc@0.5 over all rows.
        """
        run, name = self._run, self._settings.benchmark
        _, weights, resident = run.for_sampling(state, self._weights_of, self._resident)
        responses: dict[int, str | None] = {row.index: None for row in self._rows}
        for index, response, error in self._predictor.predict(
            self._questions, params=weights, resident=resident
        ):
            responses[index] = response
            if error:
                run.rejected.add(Rejected(f"{name} row {index}", str(index), error), step)
        if run.is_first:
            lines = [
                json.dumps({"index": index, "response": response}) + "\n"
                for index, response in responses.items()
                if response is not None
            ]
            self._spare(self._write, f"step_{step:06d}.jsonl", "".join(lines))
        said, direct = list(responses.values()), self._settings.direct
        overall = scoring.score(self._rows, said, direct=direct).overall
        found = {
            "eval_acc": overall.hit_rate,
            "eval_mean_iou": overall.mean_iou,
            "eval_image_acc": overall.image_accuracy,
            "eval_format": overall.format_rate,
        }
        return {name: value for name, value in found.items() if value is not None}

    def _write(self, name: str, text: str) -> None:
        folder = self._run.workdir / "held_out"
        outputs.make_folder(folder)
        outputs.replace_text(folder / name, text)
