"""The one exception that means "your input needs mending", a list of such, and how a command line reports it."""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """Input, option or file that the user can put right.

    The message names the file and row, says what is wrong and how to mend it. It never holds patient text.
    """


# An identifier, sentences, or more than a name's length: of a line of values that stands where the header should.
_VALUE = re.compile(r"\d{6,}|[0-9a-f]{8}-[0-9a-f]|.{60}|[.!?]\s+\S", re.IGNORECASE | re.DOTALL)


def show_columns(names: Iterable[object]) -> str:
    """The column names of a table for a message; only how many where they look like values, which no message shows."""
    found = [str(name) for name in names]
    if any(_VALUE.search(name) for name in found if name):
        return f"{len(found)}, which look like values: is the header missing?"
    return ", ".join(found)[:600] or "none"


class Problems:
    """Counts problems of one file and keeps the first few, so that a user mends ten rows a run and not one."""

    def __init__(self, path: str | os.PathLike[str], *, shown: int = 10):
        self.path = path
        self.shown = shown
        self.count = 0
        self.first: list[str] = []

    def add(self, message: object) -> None:
        """Note one problem; `message` is a whole line, with file, row and remedy."""
        self.count += 1
        if self.count <= self.shown:
            self.first.append(str(message))

    def refuse(self) -> None:
        """Raise one `UserError` that lists what was noted; do nothing when that is nothing."""
        if self.count == 1:
            raise UserError(self.first[0])
        if self.count:
            more = f", the first {self.shown}" if self.count > self.shown else ""
            raise UserError("\n  ".join([f"{self.path}: {self.count} problems{more}:", *self.first]))


def refuse_below_one(args: object, *names: str) -> None:
    """Raise UserError for the first of the named options of a command line that is given and below 1."""
    _refuse_below(1, args, names)


def refuse_negative(args: object, *names: str) -> None:
    """Raise UserError for the first of the named options of a command line that is given and below 0."""
    _refuse_below(0, args, names)


def _refuse_below(least: int, args: object, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {least}")


class Terminated(KeyboardInterrupt):
    """SIGTERM, as `kill` and job schedulers send it: ends a command as Ctrl-C does."""


# What a command that resumes by itself says when it is interrupted (`run_cli`).
GOES_ON = "to go on, run the same command: what is finished is kept and not done again"


def catch_sigterm() -> None:
    """Make SIGTERM raise `Terminated` in the main thread; left alone where the caller set or ignored it."""

    def raise_it(_number, _frame):
        raise Terminated

    with contextlib.suppress(ValueError):  # not in the main thread
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, raise_it)


def run_cli(main: Callable[[], int | None], again: str | None = None) -> None:
    """Run a command line's `main()` and leave the process with its exit status.

    A `UserError` becomes `error: ...` on stderr and status 2 without a traceback; Ctrl-C is status 130, SIGTERM 143; a
    reader that went away (`| head`) is status 141. Any other exception is a defect of ours and keeps its traceback.

    Args:
        again: how to go on after an interruption, said when one comes.
    """
    catch_sigterm()
    try:
        status = main()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        if again and "--overwrite" in sys.argv:  # the same command would begin again
            again = again.replace("the same command", "the same command without --overwrite")
        print("; ".join(filter(None, ["interrupted", again])), file=sys.stderr)
        sys.exit(128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT))
    except BrokenPipeError:
        # Python flushes stdout once more at exit and would complain again: give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    sys.exit(status or 0)
