"""A model loaded once to answer questions about images."""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar, overload

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from PIL import Image

from mirg_jax import sharding
from mirg_jax.data.batching import Item
from mirg_jax.data.examples import Example
from mirg_jax.data.images import MAX_ASPECT_RATIO, ImageRoot, Root, load_image, to_rgb
from mirg_jax.data.json_rows import check_path
from mirg_jax.data.pipeline import Preparer, threads_of_this_machine
from mirg_jax.data.prompts import Tokenizer
from mirg_jax.errors import DataError
from mirg_jax.files import compiled, places
from mirg_jax.files.streams import say
from mirg_jax.inference import rows
from mirg_jax.inference.answer import GroundedAnswer
from mirg_jax.inference.feeding import Feeder
from mirg_jax.models.config import ModelConfig
from mirg_jax.models.layers import Precision
from mirg_jax.models.options import ModelOptions
from mirg_jax.runs import devices, engines, loading
from mirg_jax.runs import settings as run_settings
from mirg_jax.runs.loading import Model
from mirg_jax.runs.settings import Settings
from mirg_jax.runs.tokenizer import load_tokenizer, say_if_begun
from mirg_jax.sampling.config import SamplingConfig
from mirg_jax.sampling.pool import make_feeding
from mirg_jax.sampling.tokens import decode, forbidden_ids, stop_ids
from mirg_jax.sharding import processes

ImageLike = str | pathlib.Path | Image.Image | np.ndarray
T = TypeVar("T")

_CHANNELS = ((), (3,), (4,))  # last sizes of arrays that are images: grey, RGB, RGBA
# Questions read ahead and sorted by length, over all processes; less for few rows, at most 8 times
# as many, and more for many, at least twice as many.
_WINDOW = 256


class Prediction(NamedTuple):
    """The response to one question."""

    index: int  # number of the question, or of the answer if there are several to each
    response: str | None  # None if the question or its images can't be used
    error: str | None = None  # the reason, if there is no response


class Predictor:
    """A model and its tokenizer, loaded and ready to answer questions.

    Attributes:
      model: the model; its `params` may be None if `predict` is always given parameters.
      tokenizer: the model's tokenizer.
      max_tokens: maximum length of a response in tokens.
      steps: decoding steps of the last questions, on this process's busiest devices.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        mesh: Mesh,
        sampling_mesh: Mesh,
        preparer: Preparer,
        *,
        batch_size: int,
        max_tokens: int,
        temperature: float = 0.0,
        samples: int = 1,
    ):
        """Creates a predictor from a loaded model; see `open` for loading one.

        Args:
          model: the model.
          tokenizer: the model's tokenizer.
          mesh: the mesh that prompts are divided over: the training mesh. A process holds its rows
            alone, which isn't so of the sampling mesh where a group of devices spans processes.
          sampling_mesh: the mesh that samples, from `sharding.sampling_mesh`.
          preparer: reads images and encodes prompts.
          batch_size: answers given at once, rounded up to a number that can be sharded evenly; 0:
            as `inference/rows.py` says, by the devices and their memory.
          max_tokens: maximum length of a response in tokens.
          temperature: sampling temperature; 0 is greedy decoding. Random keys depend on the
            question's number.
          samples: answers to each question, which share its prompt and images.
        """
        self.model, self.tokenizer, self.max_tokens = model, tokenizer, max_tokens
        self._mesh, self._preparer = mesh, preparer
        self._sampling_mesh, self._samples = sampling_mesh, samples
        self._batch_size = -(-batch_size // samples)
        self._most: int | None = None  # rows; known with the weights
        self.steps, self._told = 0, False
        config = SamplingConfig(
            group=samples,
            max_tokens=max_tokens,
            temperature=temperature,
            stop_tokens=stop_ids(tokenizer, model.config.end_tokens),
        )
        forbidden = forbidden_ids(tokenizer, model.config.text.vocab_size)
        heads = model.config.text.num_kv_heads
        self._feeding = make_feeding(model.graph, sampling_mesh, forbidden, config, heads)

    @classmethod
    def open(
        cls,
        source: str | pathlib.Path,
        settings: Settings,
        *,
        image_root: Root = "",
        max_tokens: int = 0,
        temperature: float = 0.0,
        samples: int = 1,
    ) -> "Predictor":
        """Loads a model and its tokenizer, using all devices.

        Args:
          source: a run's folder, a checkpoint, a Hugging Face folder or a hub name.
          settings: settings for images, prompts, batches and the mesh.
          image_root: folder that image paths in examples are relative to; if it doesn't say how
            images are read, `settings` do.
          max_tokens: maximum length of a response; 0: that of `settings.evaluation`.
          temperature: sampling temperature; 0 is greedy decoding.
          samples: answers to each question, which share its prompt and images.

        Raises:
          UserError: if the model can't be loaded or a setting is invalid.
        """
        mesh = devices.start(settings.devices)
        sampling_mesh = devices.sampling_mesh(settings.devices, mesh)
        sizes = loading.model_config(source)
        settings = settings.for_model(sizes)
        options = sampling_options(settings, sizes, mesh)
        folder = loading.model_folder(source)
        tokenizer = load_tokenizer(folder)
        say_if_begun(folder, settings.prompt)
        model = loading.load_model(source, sampling_mesh, options)
        return cls(
            model,
            tokenizer,
            mesh,
            sampling_mesh,
            settings.preparer(tokenizer, with_response=False, image_root=image_root),
            batch_size=settings.evaluation.batch_size,
            max_tokens=max_tokens or settings.evaluation.max_tokens,
            temperature=temperature,
            samples=samples,
        )

    @overload
    def ground(self, images: Sequence[ImageLike], question: str) -> GroundedAnswer: ...

    @overload
    def ground(
        self, images: Sequence[ImageLike], question: Sequence[str]
    ) -> list[GroundedAnswer]: ...

    def ground(self, images, question):
        """Answers one question, or several questions, about a set of images.

        Args:
          images: image files, PIL images or uint8 arrays [height, width, 3], in order.
          question: a question or a list of questions. `<image>` marks the position of an image in
            the text; without marks the images come first.

        Returns:
          An answer, or a list of answers.

        Raises:
          DataError: if an image or a question can't be used.
        """
        questions = [question] if isinstance(question, str) else question
        if not isinstance(questions, Sequence) or not all(isinstance(q, str) for q in questions):
            raise DataError("a question is no text; give a str, or a list of them")
        if any(re.search("[\ud800-\udfff]", q) for q in questions):
            raise DataError("a question has a surrogate, half a character; give whole ones")
        if isinstance(images, str | os.PathLike | Image.Image) or not len(images):
            raise DataError("there is no list of images; give one of one or more")
        upright = ImageRoot.of(self._preparer.image_root).apply_exif
        pictures = [_open_image(image, upright) for image in images]
        names = tuple(f"image {n}" for n in range(1, len(pictures) + 1))
        if not self._told:
            say("the first answer waits for programs to compile, up to a minute or two")
            self._told = True
        examples = [(n, Example("question", "", names, q, ())) for n, q in enumerate(questions)]
        encode = functools.partial(self._preparer.encode, images=pictures)
        responses = {p.index: p for p in self._answer(examples, encode, self.model.params, ())}
        answers = []
        for n in range(len(questions)):
            response = responses[n].response
            if response is None:
                raise DataError(responses[n].error)
            answers.append(GroundedAnswer.parse(response, pictures))
        return answers[0] if isinstance(question, str) else answers

    def predict(
        self,
        examples: Sequence[tuple[int, Example]],
        *,
        params: nnx.State | None = None,
        resident: Any = (),
    ) -> Iterator[Prediction]:
        """Answers numbered examples; answers come in the order in which they end.

        An example that can't be read yields its error. With several processes, each answers a share
        of the examples, and all of them yield all answers. With several samples, those of example n
        have the numbers from n · samples on.

        Args:
          examples: pairs of number and example.
          params: weights for sampling; by default the model's parameters.
          resident: other arrays that stay allocated on the devices meanwhile.
        """
        params = self.model.params if params is None else params
        return self._answer(examples, self._preparer, params, resident)

    def count_tokens(self, text: str) -> int:
        """Returns the number of tokens in a text."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def _answer(
        self,
        numbered: Sequence[tuple[int, T]],
        prepare: Callable[[T], Item],
        params: nnx.State,
        resident: Any,
    ) -> Iterator[Prediction]:
        share = sharding.data_share(self._mesh)
        count = self._rows(len(numbered), params, resident)
        span = max(min(_WINDOW, 8 * count), 2 * count)
        feeder = Feeder(
            self._feeding,
            functools.partial(
                decode,
                self.tokenizer,
                end_tokens=self.model.config.end_tokens,
                opening=self._preparer.style.opening,
            ),
            self._preparer.shapes,
            self._mesh,
            self._sampling_mesh,
            rows=count,
            params=params,
            resident=resident,
        )

        def read(pair: tuple[int, T]) -> tuple[int, Item | str]:
            try:
                return pair[0], prepare(pair[1])
            except DataError as error:
                return pair[0], str(error)

        def length(pair: tuple[int, Item]) -> int:
            return len(pair[1].encoded.tokens)

        with ThreadPoolExecutor(threads_of_this_machine()) as pool:

            def read_window(start: int) -> Iterator[tuple[int, Item | str]]:
                return pool.map(read, numbered[start + share.index : start + span : share.count])

            ahead = read_window(0)
            for start in range(0, len(numbered), span):
                window, ahead = list(ahead), read_window(start + span)
                errors = [
                    Prediction(i * self._samples + sample, None, e)
                    for i, e in window
                    if isinstance(e, str)
                    for sample in range(self._samples)
                ]
                yield from _of_all_processes(errors)
                usable = [(i, item) for i, item in window if not isinstance(item, str)]
                # Every other window from its longest prompt, which is as long as the last one.
                usable.sort(key=length, reverse=bool(start // span % 2))
                for answers in feeder.feed(usable):
                    yield from _of_all_processes([Prediction(*each) for each in answers])
            for answers in feeder.finish():
                yield from _of_all_processes([Prediction(*each) for each in answers])
        self.steps = feeder.steps

    def _rows(self, count: int, params: nnx.State, resident: Any) -> int:
        """Returns how many of `count` questions are answered at once, the same in all processes."""
        meshes = self._mesh, self._sampling_mesh
        if self._most is None:
            memory = rows.memory_of(jax.local_devices()[0])
            given = self._feeding, params, resident, self._preparer.shapes
            most = rows.at_once(self._batch_size, memory, *given, *meshes)
            self._most = min(processes.gather(most))
        return rows.for_questions(count, self._most, *meshes)


def sampling_options(settings: Settings, sizes: ModelConfig, mesh: Mesh) -> ModelOptions:
    """Returns the model's options for inference: parameters are stored in the compute dtype.

    Raises:
      ConfigError: if the settings name an attention that the devices can't run.
    """
    options = engines.options(settings.model, sizes, mesh)
    compute = options.precision.compute
    return dataclasses.replace(options, precision=Precision(compute, compute))


def load(
    source: str | pathlib.Path, *, settings: Settings | None = None, max_tokens: int = 0
) -> Predictor:
    """Loads a model for answering questions.

    Args:
      source: a run's folder (`runs/demo/grpo`), one of its checkpoints, `RUN/best`, a Hugging Face
        folder or a hub name.
      settings: settings for images, prompts, batches and the mesh; by default those that the run
        was trained with, or those of `mirg_jax.defaults`.
      max_tokens: maximum length of a response in tokens; 0: that of the settings.

    Raises:
      UserError: if the model can't be loaded or a setting is invalid.
    """
    compiled.keep()
    source = places.expanded(str(source))
    return Predictor.open(source, settings or read_own_settings(source), max_tokens=max_tokens)


def read_own_settings(source: str | pathlib.Path) -> Settings:
    """Returns the settings that a run was trained with, or the defaults for any other model."""
    return run_settings.read(run_settings.of_model(source))


def _open_image(image: ImageLike, upright: bool) -> Image.Image:
    """Converts an image, or reads it from a file, as 8-bit RGB.

    Args:
      image: the image, or the file's path.
      upright: whether a file's EXIF orientation is applied.

    Raises:
      DataError: if it can't be read.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in _CHANNELS:
            raise DataError(
                f"an image is an array of shape {image.shape} and dtype {image.dtype}; give "
                "[height, width, 3] of uint8"
            )
        image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        try:
            if not 0 < max(image.size) <= MAX_ASPECT_RATIO * min(image.size):
                raise ValueError(f"it is narrower than 1:{MAX_ASPECT_RATIO}; crop it or pad it")
            return to_rgb(image)
        except ValueError as error:
            raise DataError(f"an image of {image.width}x{image.height}: {error}") from None
    if not isinstance(image, str | os.PathLike):
        raise DataError(
            f"an image is a {type(image).__name__}; give a path, a PIL image or an array"
        )
    check_path(str(image))
    path = places.local(image, "image").resolve()
    return load_image(ImageRoot(path.parent, apply_exif=upright), path.name)


def _of_all_processes(predictions: list[Prediction]) -> Iterator[Prediction]:
    """Yields the predictions of all processes, each question once."""
    gathered = processes.gather(predictions)
    yield from {p[0]: Prediction(*p) for each in gathered for p in each}.values()
