"""The shared start of every binary: flags in, one line and status 2 out on bad input."""

import os
import sys
from collections.abc import Callable, Sequence

# Set before transformers is imported: it serves us for tokenizers, and would tell every user of
# every binary that PyTorch is missing.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from absl import app, flags, logging

from mirg_jax.errors import SaveError, UserError


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Parses the flags and runs `main`; does not return.

    Bad flags and a `UserError` end the program with status 2 and one line on stderr. Any other
    exception is a bug of ours and keeps its traceback.
    """

    def guarded(argv: Sequence[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # Orbax tells every file it writes
        try:
            main(argv)
        except UserError as error:
            # The threads of a save that failed would each say why they can't end in order, and
            # with other processes an orderly end would wait for them.
            jax = sys.modules.get("jax")
            together = jax is not None and jax.distributed.is_initialized()
            _fail(error, at_once=together or isinstance(error, SaveError))

    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS and flags.FLAGS.config is not None:
            # A config file that is not there shows only when its value is first touched.
            getattr(flags.FLAGS.config, "lock", None)
    except (flags.Error, OSError) as error:
        _fail(_user_error(error) or f"{error}; see --help")
    except AttributeError as error:  # how config_flags rejects --config.no_such_field
        name = str(error).strip("\"'")
        _fail(f"the config has no field {name!r}; its fields are in the file named by --config")
    if rest[1:]:
        _fail(f"unexpected argument {rest[1]!r}: everything is given by flags, see --help")
    return rest


def _user_error(error: BaseException | None) -> UserError | None:
    """What a config file raised: its flag's error is that with tracebacks around it."""
    found = None
    while error is not None:
        found = error if isinstance(error, UserError) else found
        error = error.__cause__ or error.__context__
    return found


def _fail(reason: object, *, at_once: bool = False) -> None:
    program = os.path.basename(sys.argv[0])
    print(f"{program}: {' '.join(str(reason).split())}", file=sys.stderr, flush=True)
    if at_once:
        sys.stdout.flush()
        os._exit(2)
    sys.exit(2)
