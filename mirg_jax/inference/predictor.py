"""A model that is opened once and answers questions about images."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar, overload

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from PIL import Image

from mirg_jax import sharding
from mirg_jax.data.batching import Item, collate_prompts, common_sizes, prompt_rows, sizes
from mirg_jax.data.examples import Example
from mirg_jax.data.images import load_image, to_rgb
from mirg_jax.data.pipeline import Preparer
from mirg_jax.data.prompts import Tokenizer
from mirg_jax.errors import DataError
from mirg_jax.inference.answer import GroundedAnswer
from mirg_jax.models.layers import Precision
from mirg_jax.models.options import ModelOptions
from mirg_jax.runs import devices, loading
from mirg_jax.runs import settings as run_settings
from mirg_jax.runs.loading import Model
from mirg_jax.runs.settings import Settings
from mirg_jax.sampling.sampler import SamplingConfig, make_sampler, sample_keys
from mirg_jax.sampling.tokens import decode, forbidden_ids, stop_ids
from mirg_jax.sharding import processes
from mirg_jax.sharding.memory import with_resident

ImageLike = str | os.PathLike | Image.Image | np.ndarray
T = TypeVar("T")

# Prompts of similar length are put together within so many batches.
_WINDOW = 8


class Prediction(NamedTuple):
    """The response to the question of number `index`, or why there is none."""

    index: int
    response: str | None
    error: str | None = None


class Predictor:
    """A model with its tokenizer, on its devices, ready to answer.

    Attributes:
      model: its `params` may be None where `predict` is given others.
      max_tokens: of a response.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        mesh: Mesh,
        preparer: Preparer,
        *,
        batch_size: int,
        max_tokens: int,
        temperature: float = 0.0,
    ):
        """
        Args:
          mesh: of `sharding.sampling_mesh`.
          preparer: reads images and encodes prompts.
          batch_size: prompts at a time; rounded up to what the mesh divides evenly.
          temperature: 0 takes the likeliest token; above, tokens are drawn by the question's
            number.
        """
        self.model, self.tokenizer, self.max_tokens = model, tokenizer, max_tokens
        self._mesh, self._preparer = mesh, preparer
        self._batch_size = sharding.whole_rows(batch_size, mesh)
        config = SamplingConfig(
            max_tokens=max_tokens, temperature=temperature, stop_tokens=stop_ids(tokenizer)
        )
        forbidden = forbidden_ids(tokenizer, model.config.text.vocab_size)
        self._sample = with_resident(make_sampler(model.graph, mesh, forbidden, config))
        self._keys = jax.jit(
            lambda numbers: sample_keys(jax.random.key(0), numbers, 1),
            out_shardings=sharding.by_rows(mesh),
        )

    @classmethod
    def open(
        cls,
        source: str | os.PathLike,
        settings: Settings,
        *,
        image_root: str = "",
        max_tokens: int = 0,
        temperature: float = 0.0,
    ) -> "Predictor":
        """Loads a model onto all devices.

        Args:
          source: a run's folder, a checkpoint, a Hugging Face folder or a hub name.
          settings: how images are read, prompts worded and devices divided.
          image_root: folder that the paths of examples are relative to.
          max_tokens: of a response; 0 for that of `settings.evaluation`.

        Raises:
          UserError: for a model or setting that can't be used.
        """
        mesh = devices.sampling_mesh(settings.devices, devices.start(settings.devices))
        options = sampling_options(settings, mesh)
        model = loading.load_model(source, mesh, options)
        tokenizer = loading.load_tokenizer(model.folder)
        return cls(
            model,
            tokenizer,
            mesh,
            settings.preparer(tokenizer, with_response=False, image_root=image_root),
            batch_size=settings.evaluation.batch_size,
            max_tokens=max_tokens or settings.evaluation.max_tokens,
            temperature=temperature,
        )

    @overload
    def ground(self, images: Sequence[ImageLike], question: str) -> GroundedAnswer: ...

    @overload
    def ground(
        self, images: Sequence[ImageLike], question: Sequence[str]
    ) -> list[GroundedAnswer]: ...

    def ground(self, images, question):
        """Answers a question about some images, or several questions about the same.

        Args:
          images: files, PIL images or arrays [height, width, 3] of bytes, in order.
          question: one, or a list of them. `<image>` marks may say where the images go; without
            them the images come first.

        Returns:
          An answer, or a list of them.

        Raises:
          DataError: for an image or a question that can't be used.
        """
        questions = [question] if isinstance(question, str) else list(question)
        pictures = [_open_image(image) for image in images]
        names = tuple(f"image {n}" for n in range(1, len(pictures) + 1))
        examples = [(n, Example("question", "", names, q, ())) for n, q in enumerate(questions)]
        encode = functools.partial(self._preparer.encode, images=pictures)
        responses = {p.index: p for p in self._answer(examples, encode, self.model.params, ())}
        answers = []
        for n in range(len(questions)):
            if responses[n].response is None:
                raise DataError(responses[n].error)
            answers.append(GroundedAnswer.parse(responses[n].response, pictures))
        return answers[0] if isinstance(question, str) else answers

    def predict(
        self,
        examples: Sequence[tuple[int, Example]],
        *,
        params: nnx.State | None = None,
        resident: Any = (),
    ) -> Iterator[Prediction]:
        """Answers numbered examples, batch by batch; one that can't be read yields its error.

        Of several processes, each answers a share, and all get all answers.

        Args:
          params: as the sampler reads them; by default the model's own.
          resident: arrays that lie on the devices meanwhile.
        """
        params = self.model.params if params is None else params
        return self._answer(examples, self._preparer, params, resident)

    def count_tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def _answer(
        self,
        numbered: Sequence[tuple[int, T]],
        prepare: Callable[[T], Item],
        params: nnx.State,
        resident: Any,
    ) -> Iterator[Prediction]:
        share = sharding.data_share(self._mesh)
        span = _WINDOW * self._batch_size

        def read(pair: tuple[int, T]) -> tuple[int, Item | str]:
            try:
                return pair[0], prepare(pair[1])
            except DataError as error:
                return pair[0], str(error)

        with ThreadPoolExecutor(2) as pool:

            def read_window(start: int) -> Iterator[tuple[int, Item | str]]:
                return pool.map(read, numbered[start + share.index : start + span : share.count])

            ahead = read_window(0)
            for start in range(0, len(numbered), span):
                window, ahead = list(ahead), read_window(start + span)
                errors = [Prediction(i, None, e) for i, e in window if isinstance(e, str)]
                yield from _of_all_processes(errors)
                usable = [(i, item) for i, item in window if not isinstance(item, str)]
                usable.sort(key=lambda pair: len(pair[1].encoded.tokens))
                yield from self._answer_window(usable, share, params, resident)

    def _answer_window(
        self,
        usable: Sequence[tuple[int, Item]],
        share: sharding.Share,
        params: nnx.State,
        resident: Any,
    ) -> Iterator[Prediction]:
        """Answers this process's items, in batches of as many and as large as the others'."""
        rows, shapes = self._batch_size // share.count, self._preparer.shapes
        parts = [usable[at : at + rows] for at in range(0, len(usable), rows)]
        items = [[item for _, item in part] for part in parts]
        wanted = [sizes(part, prompt_rows(part, rows), shapes) for part in items]
        for number, size in enumerate(common_sizes(processes.gather(wanted))):
            held = items[number] if number < len(items) else []
            batch = collate_prompts(held, shapes, rows, size)
            indices = [index for index, _ in parts[number]] if held else []
            numbers = np.array(indices + [0] * (rows - len(indices)), np.int32)
            text, images, numbers = sharding.place_rows(
                (batch.text, batch.images, numbers), self._mesh
            )
            rollout = self._sample(resident, params, text, images, self._keys(numbers))
            tokens, mask = map(sharding.local_rows, (rollout.tokens, rollout.mask))
            texts = decode(self.tokenizer, tokens, mask)
            # What is behind the numbered rows is padding.
            yield from _of_all_processes(
                [Prediction(index, text) for index, text in zip(indices, texts, strict=False)]
            )


def sampling_options(settings: Settings, mesh: Mesh) -> ModelOptions:
    """How a model that only answers is computed: kept in the dtype that it is computed in."""
    options = settings.model.options(mesh.devices.flat[0].platform)
    compute = options.precision.compute
    return dataclasses.replace(options, precision=Precision(compute, compute))


def load(
    source: str | os.PathLike, *, settings: Settings | None = None, max_tokens: int = 0
) -> Predictor:
    """Opens a model, once, to ask it questions.

    Args:
      source: a run's folder (`runs/demo/grpo`), one of its checkpoints, `RUN/best`, a Hugging Face
        folder or a hub name.
      settings: how images are read, prompts worded and devices divided; by default those that the
        run was trained with, or those of `mirg_jax.defaults`.
      max_tokens: of a response; 0 for that of the settings.

    Raises:
      UserError: for a model or setting that can't be used.
    """
    return Predictor.open(source, settings or read_own_settings(source), max_tokens=max_tokens)


def read_own_settings(source: str | os.PathLike) -> Settings:
    """The settings that a run was trained with; the defaults for any other model."""
    return run_settings.read(run_settings.of_model(source))


def _open_image(image: ImageLike) -> Image.Image:
    """An image as 8-bit RGB.

    Raises:
      DataError: if it can't be read.
    """
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise DataError(
                f"an image is an array {image.shape} of {image.dtype}; give [height, width, 3] of "
                "uint8"
            )
        return to_rgb(Image.fromarray(image))
    path = pathlib.Path(image).resolve()
    return load_image(path.parent, path.name)


def _of_all_processes(predictions: list[Prediction]) -> Iterator[Prediction]:
    told = processes.gather(predictions)
    yield from {p[0]: Prediction(*p) for each in told for p in each}.values()
