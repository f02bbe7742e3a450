"""Downloading of models from the Hugging Face hub; whatever fails is said in one line."""

import contextlib
import difflib
import errno
import io
import os
import pathlib

from mirg_jax.errors import CheckpointError

# Variables of the environment that say how the hub is reached and where its files are kept.
_VARIABLES = (
    *("HF_ENDPOINT", "HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT", "HF_HOME", "HF_HUB_CACHE"),
    *("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR"),
)


# A model's files apart from its weights.
_SMALL = ("*.json", "*.txt", "*.jinja")
_MOST_FOLDERS = 6  # that are named where one was mistyped


def download(name: str, *, weights: bool = True) -> pathlib.Path:
    """Downloads a model, or finds it in the cache, and returns its folder.

    Args:
      name: the model's name on the hub.
      weights: whether its weights are wanted too; otherwise they may be missing in the folder.

    Raises:
      CheckpointError: if there is no such model, it can't be had without a token, or the hub can't
        be reached.
    """
    try:
        # Imported here, since settings of the environment can make the import itself fail, which
        # the library prints as well.
        with contextlib.redirect_stdout(io.StringIO()):
            from huggingface_hub import errors, snapshot_download
    except Exception as error:
        raise CheckpointError(f"{name}: {_not_here(name)}{_unreachable(error)}") from None
    try:
        return pathlib.Path(
            snapshot_download(name, allow_patterns=None if weights else list(_SMALL))
        )
    except errors.HFValidationError:
        problem = (
            "not a name on the Hugging Face hub, which has the form OWNER/MODEL; check the path"
        )
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{name}: the Hugging Face hub gives this model only to those who accept its "
            "conditions; do so on its page, and log in with hf auth login or set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        problem = (
            "the Hugging Face hub has no public model of this name; check the name, or for a "
            "private one log in with hf auth login or set HF_TOKEN"
        )
    except errors.LocalEntryNotFoundError as error:
        cause = error.__cause__ or error
        problem = _unreachable(cause)
        if isinstance(cause, errors.OfflineModeIsEnabled):
            problem = (
                "not in the cache of the Hugging Face hub, which HF_HUB_OFFLINE keeps from being "
                "asked; unset it, or check the name"
            )
        elif isinstance(cause, errors.HfHubHTTPError):
            problem = _refused(cause)
    except errors.HfHubHTTPError as error:
        problem = _refused(error)
    except Exception as error:  # of the libraries below: proxies, addresses, certificates, disks
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise CheckpointError(
                f"{name}: can't be downloaded ({_first_line(error)}); free space in the cache or "
                "set HF_HOME to another folder"
            ) from None
        problem = _unreachable(error)
    raise CheckpointError(f"{name}: {_not_here(name)}{problem}") from None


def _not_here(name: str) -> str:
    """Says that there is no such folder; of a mistyped path, which ones there are instead."""
    path = pathlib.Path(name)
    try:
        there = next((parent for parent in path.parents if parent.is_dir()), pathlib.Path())
    except OSError:  # longer than names may be
        return "not a folder here, and "
    if not there.name:  # of the current folder and the root nothing follows
        return "not a folder here, and "
    missing = path.relative_to(there).parts[0]
    try:
        folders = [each.name for each in there.iterdir() if each.is_dir()]
    except OSError:  # may not be listed
        return "not a folder here, and "
    folders.sort(key=lambda each: -difflib.SequenceMatcher(None, each, missing).ratio())
    more = ", …" if len(folders) > _MOST_FOLDERS else ""
    has = ", ".join(folders[:_MOST_FOLDERS]) + more if folders else "no folders"
    return f"not a folder here ({there} has {has}), and "


def _refused(error: BaseException) -> str:
    return (
        f"the Hugging Face hub answers with an error ({_first_line(error)}); try again later, or "
        "give a folder"
    )


def _unreachable(error: BaseException) -> str:
    """Says that the hub can't be reached, and the variables that may be why."""
    # Not their values, since a proxy's may hold a password.
    given = [name for name in _VARIABLES if os.environ.get(name)]
    check = f"the network connection and {', '.join(given)}" if given else "the network connection"
    return (
        f"the Hugging Face hub can't be reached ({type(error).__name__}: {_first_line(error)}); "
        f"check {check}, or give a folder"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
