"""The shared entry point of every binary: parses flags and reports user errors in one line."""

import atexit
import contextlib
import math
import os
import pathlib
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

# Of a GPU's memory JAX takes three quarters by default; plans count on 92 %.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

from mirg_jax.data.images import ImageRoot
from mirg_jax.errors import ConfigError, SaveError, UserError, shorten
from mirg_jax.files import compiled, outputs, places
from mirg_jax.files.places import Place
from mirg_jax.files.streams import Steady, end_progress_bars

_MOST_CHARACTERS = 2000  # of an error's line
_LAST_SECONDS = 10.0  # that a program's end waits for its threads
_LEAVE_SECONDS = 20.0  # that a process which was stopped, or has failed, waits for the others
# In what JAX raises where an exchange with other processes fails.
_LOST = re.compile(r"Gloo|NCCL|[Cc]onnection (reset|refused|closed)|[Hh]eartbeat|[Cc]oordination")
_FIELDS = "; its fields are in the file named by --config and in mirg_jax/defaults.py"
# Flags and settings that may be URLs of stores, by binary.
_RECIPE = (
    "config.init_from",
    "config.model.path",
    "config.data.train_json",
    "config.data.ratings",
    "config.data.image_root",
    "config.evaluation.benchmark",
    "config.evaluation.image_root",
)
_TAKE_URLS = {
    "train_sft.py": ("workdir", *_RECIPE),
    "train_grpo.py": ("workdir", *_RECIPE),
    "evaluate.py": ("checkpoint", "output_dir", "benchmark", "image_root", *_RECIPE),
    "rate_rows.py": ("checkpoint", "output_dir", "rows", "image_root", *_RECIPE),
    "convert_checkpoint.py": ("source",),
    "ground.py": ("checkpoint", *_RECIPE),
    "evaluate_server.py": ("benchmark", "image_root"),
    "check_data.py": _RECIPE,
    "doctor.py": ("workdir", *_RECIPE),
}
_TAKE_FILES = ("check_data.py",)  # beside flags
# Flags and settings that are addresses of servers or text, and not paths.
_NO_PATHS = (
    "base_url",
    "query",
    "title",
    "system",
    "image_label",
    "instruction",
    "direct_instruction",
)


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Parses the flags and runs `main`; does not return.

    Invalid flags and a `UserError` end the program with status 2 and one line on stderr. So does
    output on stdout that couldn't be written, at the end. Ctrl-C ends it with status 130 and one
    line, the end of another process of the same run with status 1 and one line. Any other exception
    is a bug in this package and keeps its traceback.

    Args:
      main: the binary's main function; it receives the program name, and files if it takes such.
    """

    # Neither progress nor results may end a run when their reader has left.
    sys.stderr = Steady(sys.stderr)
    sys.stdout = out = Steady(sys.stdout)

    @_ends_soon()
    def guarded(argv: Sequence[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # Orbax logs every file it writes
        compiled.keep()
        try:
            main(argv)
            out.flush()
            if out.failed:
                raise UserError(f"stdout: cannot be written ({out.failed}); all files were written")
        except UserError as error:
            # After a failed save, a normal exit would print a traceback from each writer thread.
            _fail(error, at_once=_is_one_of_several() or isinstance(error, SaveError))
        except KeyboardInterrupt:
            _fail("interrupted", at_once=_is_one_of_several(), status=130)
        except (RuntimeError, ValueError) as error:
            if not (_is_one_of_several() and _LOST.search(str(error))):
                raise
            _fail(
                f"another process of this run has ended, or can't be reached ({error}); look at "
                "its output, and run the same command again on all hosts",
                at_once=True,
                status=1,
            )
        finally:
            out.flush()
            if out.failed:
                out.abandon()

    app.run(guarded, flags_parser=_parse_flags)


def _is_one_of_several() -> bool:
    """Whether this is a process of a run of several, for which a normal exit would wait."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _take_leave(status: int) -> None:
    """Waits until all processes of this run have come to their end.

    One that was stopped, or has failed, ends some seconds later in any case: the others may wait
    for it, in an exchange that they can't leave.
    """
    if not _is_one_of_several():
        return
    timer = _end_in(_LEAVE_SECONDS, status) if status else None
    try:
        sys.modules["jax"].distributed.shutdown()
    except RuntimeError:  # another has ended without it
        _end_now(status)
    if timer:
        timer.cancel()


def _end_in(seconds: float, status: int) -> threading.Timer:
    """Ends the process after some seconds, unless the timer is cancelled."""
    timer = threading.Timer(seconds, os._exit, (status,))
    timer.daemon = True
    timer.start()
    return timer


def _end_now(status: int) -> NoReturn:
    """Ends the process without what Python does at exit."""
    sys.stdout.flush()
    os._exit(status)


@contextlib.contextmanager
def _ends_soon() -> Iterator[None]:
    """Ends the process some seconds after the `with` block, if a thread keeps it from ending.

    Python waits for the threads of pools, of which one may hang in a read that never returns. Once
    they have ended, what is done at exit takes as long as it takes. Processes of a run of several
    take leave of one another before: one that ends without it brings down the others. After any
    other exception than a SystemExit such a process ends at once, since the others wait for it.
    """
    status = 1
    try:
        yield
        status = 0
        _take_leave(status)
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        _take_leave(status)
        raise
    except BaseException:
        if _is_one_of_several():
            traceback.print_exc()
            _end_now(status)
        raise
    finally:
        atexit.register(_end_in(_LAST_SECONDS, status).cancel)


def seeds(flag: flags.FlagHolder) -> list[int]:
    """Returns the values of a list flag as random seeds.

    Raises:
      ConfigError: if one isn't an integer of 0 or more, or is there twice.
    """
    given = f"--{flag.name}={','.join(flag.value)}"
    if not flag.value or not all(value.strip().isdecimal() for value in flag.value):
        raise ConfigError(f"{given}: give integers of 0 or more, separated by commas")
    found = [int(value) for value in flag.value]
    if len(set(found)) < len(found):
        raise ConfigError(f"{given}: give each seed once")
    return found


def output_file(flag: flags.FlagHolder) -> pathlib.Path:
    """Returns the path of a file to write, after checking that it can be written.

    Raises:
      ConfigError: if it can't, is a URL, or is a file that another flag names, a recipe too.
    """
    path = places.local(_path(flag), f"--{flag.name}")
    outputs.check_file(path, f"--{flag.name}")
    for name in set(flags.FLAGS) - {flag.name}:
        value = flags.FLAGS[name].value
        named = list(_texts(name, value))
        if isinstance(value, ConfigDict):
            recipe = config_flags.get_config_filename(flags.FLAGS[name])
            named.append((name, recipe.partition(":")[0]))
        for key, text in named:
            given = text.rpartition("=")[2]
            if path.exists() and os.path.exists(given) and path.samefile(given):
                raise ConfigError(f"--{flag.name}={path}: would replace --{key}; give another path")
    return path


def output_folder(flag: flags.FlagHolder) -> Place:
    """Returns the folder to write to, after checking that it takes files.

    Raises:
      ConfigError: if it doesn't.
    """
    outputs.check_folder(_path(flag), f"--{flag.name}")
    return _path(flag)


def _path(flag: flags.FlagHolder) -> Place:
    if not flag.value.strip():
        raise ConfigError(f"--{flag.name}: is empty; give a path")
    return places.of(flag.value, f"--{flag.name}")


def link_flag() -> flags.FlagHolder[bool]:
    """Defines --follow_links."""
    return flags.DEFINE_bool(
        "follow_links", False, "Whether links below the image root may lead to files elsewhere."
    )


def image_flags() -> Callable[[str], ImageRoot]:
    """Defines --follow_links and --apply_exif.

    Returns:
      The function that makes an image root of a folder, once the flags are parsed.
    """
    follow_links = link_flag()
    apply_exif = flags.DEFINE_bool(
        "apply_exif",
        False,
        "Whether images are turned as their EXIF orientation says; by default they are read as "
        "stored, which is what the boxes of published data sets are relative to.",
    )
    return lambda folder: ImageRoot(
        places.of(folder, "--image_root"), follow_links.value, apply_exif.value
    )


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS and flags.FLAGS.config is not None:
            # A missing config file raises only when the flag's value is first accessed.
            getattr(flags.FLAGS.config, "lock", None)
    except (flags.Error, OSError) as error:
        _fail(_user_error(error) or f"{error}; see --help")
    except AttributeError as error:  # how config_flags rejects --config.no_such_field
        close = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', str(error))
        name = close[2] if close else str(error).strip("\"'")
        meant = f" (did you mean {close[1]!r}?)" if close else ""
        _fail(f"the config has no field {name!r}{meant}{_FIELDS}")
    except (LookupError, TypeError, ValueError) as error:
        if (option := _no_field(error)) is None:  # a fault of the recipe's own
            raise
        _fail(f"--config.{option}: the config has no such field{_FIELDS}")
    if rest[1:] and os.path.basename(sys.argv[0]) not in _TAKE_FILES:
        _fail(f"unexpected argument {rest[1]!r}: all options are flags, see --help")
    for name in flags.FLAGS:
        if isinstance(value := flags.FLAGS[name].value, float) and not math.isfinite(value):
            _fail(f"--{name}={value} must be a finite number")
    for name in flags.FLAGS:
        flags.FLAGS[name].value = _expanded(name, flags.FLAGS[name].value)
    try:
        _refuse_urls()
    except ConfigError as error:
        _fail(error)
    return rest


def _no_field(error: BaseException) -> str | None:
    """The field of an option --config.FIELD in which `config_flags` failed; None if it didn't."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_globals["__name__"] == config_path.__name__:
            known = frame.f_locals
            return known.get("override", known.get("config_path"))
    return None


def _expanded(name: str, value: Any) -> Any:
    """Returns a flag's value with the home folder for ~ at the beginning of its paths."""
    if isinstance(value, str) and not name.endswith(_NO_PATHS):
        return places.expanded(value)
    if isinstance(value, ConfigDict):
        for key in value:
            new = _expanded(f"{name}.{key}", value[key])
            if new != value[key]:
                value[key] = new
    elif isinstance(value, list | tuple):
        return type(value)(_expanded(name, each) for each in value)
    return value


def _refuse_urls() -> None:
    """Checks that flags and settings are no URLs, which would be taken for paths of new folders.

    Raises:
      ConfigError: if one is that may not be one, or is of a store that can't be reached.
    """
    taken = _TAKE_URLS.get(os.path.basename(sys.argv[0]), ())
    for name in flags.FLAGS:
        for key, value in _texts(name, flags.FLAGS[name].value):
            if not key.endswith(_NO_PATHS):
                check = places.check if key in taken else places.check_local
                # A list's entry may have a name, as in --predictions=NAME=PATH.
                check(value.rpartition("=")[2], f"--{key}")


def _texts(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yields all texts of a flag's value with their names."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, ConfigDict):
        for key in value:
            yield from _texts(f"{name}.{key}", value[key])
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(name, each)


def _user_error(error: BaseException | None) -> UserError | None:
    """What a config file raised: its flag's error is that with tracebacks around it."""
    found = None
    while error is not None:
        found = error if isinstance(error, UserError) else found
        error = error.__cause__ or error.__context__
    return found


def _fail(reason: object, *, at_once: bool = False, status: int = 2) -> NoReturn:
    program = os.path.basename(sys.argv[0])
    line = shorten(" ".join(str(reason).split()), _MOST_CHARACTERS)
    end_progress_bars()
    print(f"{program}: {line}", file=sys.stderr, flush=True)
    if at_once:
        _end_now(status)
    sys.exit(status)
