"""The in-process teacher: a model of our own answers, with no server between."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from mirg_jax.chat.client import Reply, Unanswerable
from mirg_jax.data.examples import Example
from mirg_jax.grounding.grammar import END_OF_TURN
from mirg_jax.inference.predictor import Prediction, Predictor
from mirg_jax.runs import settings
from mirg_jax.trajectories.teachers import Request

_GATHER = 0.05  # seconds in which other requests may join a batch


class ModelTeacher:
    """Answers by the model, in batches of the requests that are there; loads it at the first."""

    def __init__(self, how: Mapping[str, Any], image_root: str):
        """
        Args:
          how: a stage of the config; its `recipe` says how images are read, prompts worded and
            the model laid out, as scripts/evaluate.py takes it, {} as the model's own run did.
        """
        self._how = how
        self._image_root = image_root
        fields = ("model", "temperature", "max_tokens", "recipe")
        self.settings = json.dumps({name: how[name] for name in fields}, sort_keys=True)
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
        found: Prediction = await future
        if found.response is None:
            raise Unanswerable(found.error)
        text = found.response.removesuffix(END_OF_TURN)
        whole = text != found.response
        tokens = self._predictor.count_tokens(text)
        return Reply(
            text, "" if whole else "the answer was cut at max_tokens", completion_tokens=tokens
        )

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(_GATHER)
            batch, self._waiting = self._waiting, []
            try:
                found = await asyncio.to_thread(self._answer, [request for request, _ in batch])
            except Exception as error:  # for those who wait
                for _, future in batch:
                    future.set_exception(error)
                continue
            for (_, future), prediction in zip(batch, found, strict=True):
                future.set_result(prediction)

    def _load(self) -> None:
        """Raises UserError for a model or recipe that can't be used."""
        recipe, source = ConfigDict(self._how["recipe"]), self._how["model"]
        self._predictor = Predictor.open(
            source,
            settings.read(recipe or settings.of_model(source)),
            image_root=self._image_root,
            max_tokens=self._how["max_tokens"],
            temperature=self._how["temperature"],
        )

    def _answer(self, requests: Sequence[Request]) -> list[Prediction]:
        if self._predictor is None:
            self._load()
        # A request's random numbers are its own, whatever it is batched with.
        numbers = [int(request.key[:7], 16) for request in requests]
        examples = [
            (number, Example(request.key, "", request.question.images, request.prompt, ()))
            for number, request in zip(numbers, requests, strict=True)
        ]
        found = {prediction.index: prediction for prediction in self._predictor.predict(examples)}
        return [found[number] for number in numbers]
