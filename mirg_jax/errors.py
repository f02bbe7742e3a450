"""Errors caused by the user's input. Binaries print them as one line and exit with status 2."""

import re

# Behind the prefix of a data URL, or alone where it is too long for a path or a name.
_BASE64 = re.compile(r"(base64,)[A-Za-z0-9+/=_-]{40,}|[A-Za-z0-9+/=_-]{1000,}")


def one_line(error: Exception) -> str:
    """Returns the beginning of an error's message, on one line."""
    return " ".join(str(error).split())[:200]


def shorten(text: str, most: int) -> str:
    """Shortens a message that quotes data: leaves out base64, and the middle of what is longer.

    Args:
      text: the message.
      most: maximum number of characters.
    """
    text = hide_base64(without_middle(text, 100 * most))
    if len(text) <= most:
        return text
    half = (most - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def without_middle(text: str, most: int) -> str:
    """Returns a text of data as both of its ends: what is wrong with them is often said behind."""
    return text if len(text) <= most else text[: most // 2] + text[-(most // 2) :]


def hide_base64(text: str) -> str:
    """Leaves out the base64 of a text, but for a data URL's prefix or its first characters."""
    return _BASE64.sub(lambda match: f"{match[1] or match[0][:20]}…", text)


def reason_kind(reason: str) -> str:
    """Replaces numbers and quoted or bracketed parts of a reason by "…", for counting by kind."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|\([^()]*\)|\[[^\[\]]*\]|-?\d+(\.\d+)?", "…", reason)


def without_secrets(url: str) -> str:
    """Returns an address without what may be a password or a key: user information and query.

    A password may hold any character, so all before the last "@" is left out.
    """
    scheme = "".join(re.findall(r"\A\w+://", url))
    address = url.removeprefix(scheme).rpartition("@")[2]
    return scheme + re.split("[?#]", address, maxsplit=1)[0]


class UserError(ValueError):
    """An error the user can fix; its one-line message says what is wrong, where, and what to do."""


class DataError(UserError):
    """An input file or data row that can't be used."""


class ConfigError(UserError):
    """An invalid setting, or settings that contradict each other."""


class RewardError(UserError):
    """A reward that fails, or that isn't a finite number."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or belongs to another model."""


class SaveError(CheckpointError):
    """A failure to write a checkpoint."""
