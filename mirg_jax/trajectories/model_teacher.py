"""A teacher in this process: a model that our own sampler runs, without a server."""

import asyncio
from collections.abc import Sequence

from mirg_jax.chat.client import Unanswerable
from mirg_jax.chat.completions import Reply
from mirg_jax.data.examples import Example
from mirg_jax.data.images import Root
from mirg_jax.grounding.grammar import END_OF_TURN
from mirg_jax.inference.predictor import Prediction, Predictor
from mirg_jax.runs import settings as run_settings
from mirg_jax.trajectories.request import Request
from mirg_jax.trajectories.settings import ModelTeacherSettings

_GATHER = 0.05  # seconds to wait for more requests before a batch is run


class ModelTeacher:
    """Answers requests in batches; loads the model for the first of them."""

    server = None

    def __init__(self, settings: ModelTeacherSettings, image_root: Root):
        """
        Args:
          image_root: folder that the images' paths are relative to.
        """
        self._settings, self._image_root = settings, image_root
        self._waiting: list[tuple[Request, asyncio.Future]] = []
        self._worker: asyncio.Task | None = None
        self._predictor: Predictor | None = None

    async def make_ready(self, request: Request) -> None:
        pass

    async def ask(self, request: Request) -> Reply:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        prediction: Prediction = await future
        if prediction.response is None:
            raise Unanswerable(prediction.error)
        text = prediction.response.removesuffix(END_OF_TURN)
        complete = text != prediction.response
        return Reply(
            text,
            "" if complete else "the answer was cut at max_tokens",
            completion_tokens=self._predictor.count_tokens(text),
        )

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(_GATHER)
            batch, self._waiting = self._waiting, []
            requests = [request for request, _ in batch]
            try:
                predictions = await asyncio.to_thread(self._answer, requests)
            except Exception as error:  # raised again in `ask`, in each task that awaits an answer
                for _, future in batch:
                    future.set_exception(error)
                continue
            for (_, future), prediction in zip(batch, predictions, strict=True):
                future.set_result(prediction)

    def _load(self) -> Predictor:
        """Raises UserError for a model that can't be used."""
        model, recipe = self._settings.model, self._settings.recipe
        return Predictor.open(
            model,
            recipe or run_settings.read(run_settings.of_model(model)),
            image_root=self._image_root,
            max_tokens=self._settings.max_tokens,
            temperature=self._settings.temperature,
        )

    def _answer(self, requests: Sequence[Request]) -> list[Prediction]:
        if self._predictor is None:
            self._predictor = self._load()
        # A request's random numbers follow from its key, so its answer doesn't depend on the batch.
        numbers = [int(request.key[:7], 16) for request in requests]
        examples = [
            (number, Example(request.key, "", request.question.images, request.prompt, ()))
            for number, request in zip(numbers, requests, strict=True)
        ]
        answers = {answer.index: answer for answer in self._predictor.predict(examples)}
        return [answers[number] for number in numbers]
