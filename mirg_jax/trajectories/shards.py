"""Parts of the questions for several machines, each with all tasks."""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from mirg_jax.data.examples import Example
from mirg_jax.errors import ConfigError
from mirg_jax.files import outputs
from mirg_jax.files.locks import Lock
from mirg_jax.files.streams import say

_BY_TASK, _BY_POSITION = "by task", "by position"


class Shard(NamedTuple):
    """One of `count` parts of the questions."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Reads "i/n", where i counts from 0.

        Raises:
          ConfigError: the text has another form.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if not match or int(match[1]) >= int(match[2]):
            raise ConfigError(f"--shard={text}: it is i/n with i from 0 to n - 1, such as 0/4")
        return cls(int(match[1]), int(match[2]))

    @property
    def name(self) -> str:
        return f"{self.index}-of-{self.count}"


def is_disjoint(shard: Shard | None, index: str | None, count: str | None) -> bool:
    """Returns whether a shard has no question of another one, as a file's name gives it.

    Args:
      shard: the shard; None for all questions.
      index: the other's index; None if the file is one of all questions.
      count: the other's number of shards, or None likewise.
    """
    if shard is None or index is None or count is None:
        return False
    return shard.count == int(count) and shard.index != int(index)


def refuse_overlap(folder: pathlib.Path, shard: Shard | None) -> None:
    """Checks that no other process asks about the same questions: each would be paid for twice.

    Args:
      folder: the folder of the outputs.
      shard: the shard whose journal this process has locked; None for all questions.

    Raises:
      ConfigError: if one does; the message names it.
    """
    own = f"replies-{shard.name}.lock" if shard else "replies.lock"
    for path in sorted(folder.glob("replies*.lock")):
        match = re.fullmatch(r"replies(?:-(\d+)-of-(\d+))?\.lock", path.name)
        if match and path.name != own and not is_disjoint(shard, match[1], match[2]):
            with Lock(path):  # the lock of a process that has ended is nobody's
                pass


def draw(questions: Sequence[Example], shard: Shard, folder: pathlib.Path) -> list[Example]:
    """Returns a shard's questions, in their order.

    Each task's questions are dealt to the shards in turn, so the shards' numbers of questions
    differ by one at most, in all and of each task. Earlier versions took every n-th question, which
    in a list that goes round the tasks may be those of one task only; shards that were begun so go
    on so, all of them, since otherwise some questions would be in two shards and others in none.

    Args:
      questions: all questions.
      shard: the shard.
      folder: the folder of the outputs, where the way of drawing is recorded.

    Raises:
      ConfigError: if the record can't be read or written.
    """
    if how_drawn(folder, shard) == _BY_POSITION:
        say(
            f"{folder}: its shards of {shard.count} were begun by an earlier version, which took "
            f"every {shard.count}th question whatever its task, and go on so"
        )
        return list(questions[shard.index :: shard.count])
    # The tasks one after another, so that each goes on where the one before has stopped.
    places = sorted(range(len(questions)), key=lambda place: questions[place].task)
    return [questions[place] for place in sorted(places[shard.index :: shard.count])]


def how_drawn(folder: pathlib.Path, shard: Shard) -> str:
    """Reads how a folder's shards are drawn, or records it if there is no record yet.

    It must be called before the shard's journal is opened, as journals without a record are those
    of an earlier version. Of shards that begin at the same time, one writes the record, and the
    others go by it: they may have seen its journal already.

    Raises:
      ConfigError: if the record can't be read or written.
    """
    record = folder / f"shards-of-{shard.count}.json"
    if not record.exists():
        begun = [*folder.glob(f"replies-*-of-{shard.count}.jsonl")]
        text = json.dumps({"drawn": _BY_POSITION if begun else _BY_TASK}) + "\n"
        try:
            outputs.make_folder(folder)
            outputs.create_text(record, text)
        except OSError as error:
            raise ConfigError(
                f"{record}: cannot be written ({error.strerror}); give another --output_dir"
            ) from None
    try:
        drawn = json.loads(record.read_text(encoding="utf-8"))["drawn"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        drawn = None
    if drawn not in (_BY_TASK, _BY_POSITION):
        raise ConfigError(
            f"{record}: doesn't say how the shards are drawn; give another --output_dir"
        )
    return drawn
