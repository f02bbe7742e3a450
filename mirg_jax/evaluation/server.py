"""A model behind a server and a benchmark file → predictions, scores and a report in one folder."""

import asyncio
import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from mirg_jax.chat.asking import Asking, GivenUp, Line, Pace, Stopped
from mirg_jax.chat.client import NO_CHOICE, Client, Retry, Unanswerable, content, data_url
from mirg_jax.data.examples import Rejected
from mirg_jax.data.images import ImageRoot, Root, load_image
from mirg_jax.errors import DataError, UserError
from mirg_jax.evaluation.predictions import Predictions, write_results
from mirg_jax.mig_bench import families, prompts, scoring
from mirg_jax.mig_bench.benchmark import Row, choose, load_benchmark
from mirg_jax.report import report


@dataclasses.dataclass(frozen=True)
class Server:
    """Who is asked, and how.

    Attributes:
      model: its name on the server.
      base_url, key_variable, timeout: as a `Client` takes them.
      concurrency, retries, backoff: as `Asking` takes them.
      requests_per_minute: 0 for no limit.
      max_tokens: of an answer; 0 for the family's.
      max_pixels: of an image as it is sent.
      extra_body: more fields of a request; None for the family's.
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
        """Raises ConfigError for want of a key."""
        how = {"base_url": self.base_url, "key_variable": self.key_variable}
        return Client(self.model, **how, timeout=self.timeout)

    def settings(self, family: families.Family) -> dict[str, Any]:
        """A request's fields but the question."""
        return {
            "model": self.model,
            "temperature": 0,
            "max_tokens": self.max_tokens or family.max_tokens,
            **(family.extra_body if self.extra_body is None else self.extra_body),
        }


class Questions:
    """Makes requests of a benchmark's rows."""

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
        # Rows that follow each other often share their images.
        self._url = functools.lru_cache(8 * server.concurrency)(self._encode)

    def _encode(self, path: str) -> str:
        image = load_image(self._root, path)
        return data_url(prompts.picture(self._family, image, self._protocol, self._max_pixels))

    def request(self, row: Row) -> tuple[dict[str, Any], str]:
        """A row's request, and the key that it is known by. Reads images.

        Raises:
          DataError: one can't be read.
        """
        parts = prompts.message(self._family, row, self._protocol, self._size_of)
        what = json.dumps([row.index, parts, self._max_pixels, self._settings], sort_keys=True)
        key = hashlib.sha256(what.encode()).hexdigest()[:32]
        sent = [(kind, self._url(value) if kind == "image" else value) for kind, value in parts]
        return {"messages": [{"role": "user", "content": content(sent)}], **self._settings}, key


class _Round:
    """Asks what has no response yet."""

    def __init__(
        self,
        questions: Questions,
        client: Client,
        server: Server,
        kept: Predictions,
        errors: pathlib.Path,
    ):
        self._questions, self._client, self._kept, self._errors = questions, client, kept, errors
        self.asking = Asking(
            concurrency=server.concurrency, retries=server.retries, backoff=server.backoff
        )
        self._line = Line(client.base_url, Pace(server.requests_per_minute))
        self.rejected: dict[int, str] = {}

    async def run(self, rows: Sequence[Row], *, progress: bool) -> None:
        waiting = iter(rows)
        with (
            tqdm(total=len(rows), unit="row", desc="evaluate", disable=not progress) as bar,
            self._errors.open("a", buffering=1) as self._log,
        ):

            async def work() -> None:
                for row in waiting:
                    try:
                        await self._row(row)
                    except GivenUp:
                        pass  # or held, and listed once it is certain
                    except Stopped:
                        return
                    bar.update()

            with self.asking.on_signals():
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.asking.workers, len(rows))):
                        group.create_task(work())
            self.asking.settle(self._line)
            await self._client.close()

    async def _row(self, row: Row) -> None:
        give_up = functools.partial(self.rejected.__setitem__, row.index)
        try:
            body, key = await asyncio.to_thread(self._questions.request, row)
        except DataError as error:
            return give_up(str(error))
        once = functools.partial(self._once, row.index, body, key)
        await self.asking.ask(self._line, once, give_up)

    async def _once(self, index: int, body: dict[str, Any], key: str) -> None:
        await self.asking.wait(self._line.pace.wait())
        try:
            reply = await self._client.complete(body, key)
            if reply.problem == NO_CHOICE:
                raise Retry(NO_CHOICE)
        except (Retry, Unanswerable) as error:
            self._log.write(json.dumps({"index": index, "reason": str(error)}) + "\n")
            raise
        # What was cut or refused is an answer too, and would come again.
        more = {"problem": reply.problem} if reply.problem else {}
        self._kept.add(index, reply.text, **more)


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
    """Asks what has no response yet, scores everything, and writes the report.

    Args:
      family_name: one of `families.FAMILIES`.
      protocol: of the prompts and the scores.
      limit: ask only so many rows, spread evenly over the file; 0 for all.

    Raises:
      UserError: for a benchmark or setting that can't be used, or a server that doesn't answer;
        what was answered is kept then.
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
        **({"apply_exif": True} if ImageRoot.of(image_root).apply_exif else {}),
    }
    questions = Questions(family, protocol, server, image_root)
    with Predictions(output_dir, what, len(rows)) as kept:
        now = _Round(questions, client, server, kept, output_dir / "errors.jsonl")
        missing = [row for row in chosen if kept.responses[row.index] is None]
        asyncio.run(now.run(missing, progress=progress))
        _write_rejected(output_dir / "rejected.jsonl", now.rejected, benchmark)
    if now.asking.error:
        raise now.asking.error
    if now.asking.stopped:
        done = sum(kept.responses[row.index] is not None for row in chosen)
        raise UserError(
            f"stopped by {now.asking.stopped}; {done} of {len(chosen)} rows are answered, run "
            "again to go on"
        )
    responses = [kept.responses[row.index] for row in chosen]
    if all(response is None for response in responses):
        raise UserError(f"no row has an answer; the first: {now.rejected[chosen[0].index]}")
    scores = families.score(
        family, chosen, responses, protocol, image_root=image_root, max_pixels=server.max_pixels
    )
    found = report.Responses(responses, scores)
    write_results(
        output_dir, server.model, benchmark, found, chosen, image_root, family=family_name
    )
    return scores


def _write_rejected(path: pathlib.Path, reasons: Mapping[int, str], benchmark: str) -> None:
    """Lists the rows that this run got no answer to, instead of those of the run before."""
    lines = [
        dataclasses.asdict(Rejected(f"{benchmark} row {index}", str(index), reason))
        for index, reason in sorted(reasons.items())
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
