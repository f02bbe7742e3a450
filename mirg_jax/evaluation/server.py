"""Evaluation of a model behind a server: writes predictions, scores and a report to a folder."""

import asyncio
import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mirg_jax.chat.asking import Asking, GivenUp, Line, Pace, Stopped
from mirg_jax.chat.client import (
    Client,
    Retry,
    Unanswerable,
    check_extra_body,
    content,
    data_url,
)
from mirg_jax.chat.completions import FILTERED, NO_CHOICE, is_empty
from mirg_jax.data.image_hashes import ImageHashes
from mirg_jax.data.images import ImageRoot, Root, load_image
from mirg_jax.errors import DataError, UserError
from mirg_jax.evaluation.predictions import Predictions, rejected_rows
from mirg_jax.evaluation.results import check_some_answered, write_results
from mirg_jax.files.streams import Spare, progress_bar
from mirg_jax.mig_bench import families, prompts, scoring, versions
from mirg_jax.mig_bench.benchmark import Row, choose, load_benchmark
from mirg_jax.report import report
from mirg_jax.runs import facts


@dataclasses.dataclass(frozen=True)
class Server:
    """The server and the settings of requests.

    Attributes:
      model: the model's name on the server.
      base_url: as in `Client`.
      key_variable: as in `Client`.
      timeout: as in `Client`.
      concurrency: as in `Asking`.
      retries: as in `Asking`.
      backoff: as in `Asking`.
      requests_per_minute: maximum rate of requests; 0: no limit.
      max_tokens: maximum length of an answer; 0: the family's.
      max_pixels: upper limit on the pixels of an image as it is sent.
      extra_body: additional fields of a request; None: the family's.
    """

    model: str
    base_url: str = ""
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 180.0
    concurrency: int = 16
    retries: int = 8
    backoff: float = 1.0
    requests_per_minute: float = 0.0
    max_tokens: int = 0
    max_pixels: int = families.MAX_PIXELS
    extra_body: Mapping[str, Any] | None = None

    def client(self) -> Client:
        """Creates a client.

        Raises:
          ConfigError: if the environment has no key, or the additional fields can't be sent.
        """
        check_extra_body(self.extra_body or {}, "extra_body")
        how = {"base_url": self.base_url, "key_variable": self.key_variable}
        return Client(self.model, **how, timeout=self.timeout)

    def settings(self, family: families.Family) -> dict[str, Any]:
        """Returns the fields of a request except the question."""
        return {
            "model": self.model,
            "temperature": 0,
            "max_tokens": self.max_tokens or family.max_tokens,
            **(family.extra_body if self.extra_body is None else self.extra_body),
        }


class Questions:
    """Makes requests from a benchmark's rows.

    Args:
      family: the family of the model.
      protocol: whose prompt to use.
      server: the settings of requests.
      image_root: folder that the benchmark's image paths are relative to.
    """

    def __init__(
        self,
        family: families.Family,
        protocol: scoring.Protocol,
        server: Server,
        image_root: Root,
    ):
        self._family, self._protocol, self._root = family, protocol, image_root
        self._max_pixels = server.max_pixels
        self._size_of = families.sizes_given(image_root, server.max_pixels)
        self._settings = server.settings(family)
        # Consecutive rows often share images.
        self._url = functools.lru_cache(8 * server.concurrency)(self._encode)

    def _encode(self, path: str) -> str:
        image = load_image(self._root, path)
        return data_url(prompts.picture(self._family, image, self._protocol, self._max_pixels))

    def request(self, row: Row) -> tuple[dict[str, Any], str]:
        """Reads a row's images, and returns its request and a key that identifies it.

        Raises:
          DataError: if an image can't be read.
        """
        parts = prompts.message(self._family, row, self._protocol, self._size_of)
        sent = [(kind, self._url(value) if kind == "image" else value) for kind, value in parts]
        what = json.dumps([row.index, sent, self._settings], sort_keys=True)
        key = hashlib.sha256(what.encode()).hexdigest()[:32]
        return {"messages": [{"role": "user", "content": content(sent)}], **self._settings}, key


class _Round:
    """Sends the requests of the rows that have no response yet.

    Attributes:
      asking: sends and repeats the requests.
      rejected: the reason for each row that got no response.
    """

    def __init__(
        self,
        questions: Questions,
        client: Client,
        server: Server,
        kept: Predictions,
        images: ImageHashes,
        errors: pathlib.Path,
    ):
        self._questions, self._client, self._kept, self._errors = questions, client, kept, errors
        self._model = server.model
        self._images, self._spare = images, Spare(str(errors))
        self.asking = Asking(
            concurrency=server.concurrency, retries=server.retries, backoff=server.backoff
        )
        self._line = Line(client.base_url, Pace(server.requests_per_minute))
        self.rejected: dict[int, str] = {}
        self._failed = 0

    async def run(self, rows: Sequence[Row], *, progress: bool) -> None:
        """Sends the requests of these rows, several at a time."""
        waiting = iter(rows)
        self._spare(self._errors.touch)
        with progress_bar(
            total=len(rows), unit="row", desc="evaluate", disable=not progress
        ) as bar:

            async def work() -> None:
                for row in waiting:
                    try:
                        await self._row(row)
                    except GivenUp:  # it is in `rejected`, or held: see `Line`
                        self._failed += 1
                        bar.set_postfix_str(f"{self._failed} without an answer")
                    except Stopped:
                        return
                    else:
                        bar.update()

            with self.asking.on_signals():
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.asking.workers, len(rows))):
                        group.create_task(work())
            self.asking.settle(self._line)
            await self._client.close()

    async def _row(self, row: Row) -> None:
        """Sends a row's request until it is answered.

        Raises:
          GivenUp: it got no answer, or can't be made.
          Stopped: no more requests are sent.
        """
        give_up = functools.partial(self.rejected.__setitem__, row.index)
        try:
            body, key = await asyncio.to_thread(self._questions.request, row)
        except DataError as error:
            give_up(str(error))
            raise GivenUp(str(error)) from None
        images = await asyncio.to_thread(self._images.of, row.images)
        once = functools.partial(self._once, row.index, body, key, images)
        await self.asking.ask(self._line, once, give_up)

    async def _once(self, index: int, body: dict[str, Any], key: str, images: str | None) -> None:
        """Sends a request once, and writes its response or the error."""
        await self.asking.wait(self._line.pace.wait())
        try:
            reply = await self._client.complete(body, key)
            if reply.problem == NO_CHOICE:
                raise Retry(NO_CHOICE)
            if is_empty(reply.text) or reply.problem == FILTERED:
                # Listed, and asked again when the server is set right.
                raise Unanswerable(reply.problem)
        except (Retry, Unanswerable) as error:
            self._spare(self._log, {"index": index, "reason": str(error)})
            raise
        # An answer that was cut or refused counts too, since it would be the same again.
        more = {"problem": reply.problem, "model": reply.model * (reply.model != self._model)}
        known = {name: value for name, value in more.items() if value}
        self._kept.add(index, reply.text, images=images, **known)

    def _log(self, row: dict[str, Any]) -> None:
        with self._errors.open("a") as file:
            file.write(json.dumps(row) + "\n")


def run(
    family_name: str,
    server: Server,
    *,
    benchmark: str,
    image_root: Root,
    output_dir: pathlib.Path,
    protocol: scoring.Protocol = "answer",
    limit: int = 0,
    progress: bool = True,
) -> scoring.Scores:
    """Sends the rows that have no response yet, scores all of them, and writes a report.

    Args:
      family_name: a key of `families.FAMILIES`.
      server: the server and the settings of requests.
      benchmark: path of the benchmark file.
      image_root: folder that the benchmark's image paths are relative to.
      output_dir: folder of the results.
      protocol: whose prompt to use, and what is scored.
      limit: number of rows to evaluate, as in `benchmark.choose`; 0: all.
      progress: whether to show a progress bar.

    Raises:
      UserError: if the benchmark or a setting can't be used, or the server doesn't answer; the
        responses received until then are kept.
    """
    family = families.FAMILIES[family_name]
    rows = load_benchmark(benchmark)
    chosen = choose(rows, limit)
    client = server.client()
    what = {
        "family": family_name,
        "protocol": protocol,
        "benchmark": benchmark,
        "max_pixels": server.max_pixels,
        "request": server.settings(family),
        "benchmark_sha256": facts.hash_rows(benchmark),
        "prompt.before": family.before,
        "prompt.after": family.after,
        "prompt.question_box": family.question_box,
        "prompt.form": getattr(family.form, protocol),
        "apply_exif": ImageRoot.of(image_root).apply_exif,
    }
    questions = Questions(family, protocol, server, image_root)
    with Predictions(output_dir, what, len(rows)) as kept:
        kept.drop_empty()
        images = ImageHashes(image_root)
        kept.check_images(chosen, images)
        now = _Round(questions, client, server, kept, images, output_dir / "errors.jsonl")
        missing = kept.missing(chosen)
        if missing:
            kept.add_server(client.base_url)
        asyncio.run(now.run(missing, progress=progress))
        kept.count_other_models()
        kept.write_rejected(rejected_rows(benchmark, now.rejected))
    if now.asking.error:
        raise now.asking.error
    if now.asking.stopped:
        done = sum(kept.responses[row.index] is not None for row in chosen)
        raise UserError(
            f"stopped by {now.asking.stopped}; {done} of {len(chosen)} rows are answered, run "
            "again to go on"
        )
    responses = [kept.responses[row.index] for row in chosen]
    check_some_answered(output_dir, responses, now.rejected)
    scores = families.score(
        family, chosen, responses, protocol, image_root=image_root, max_pixels=server.max_pixels
    )
    found = report.Responses(responses, scores)
    more = {
        "family": family_name,
        "benchmark_sha256": what["benchmark_sha256"],
        "benchmark_name": versions.name_of(rows),
        "images": images.of_rows(row.images for row in chosen),
    }
    write_results(output_dir, server.model, benchmark, found, chosen, image_root, **more)
    return scores
