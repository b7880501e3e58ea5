"""How every command ends. No jax here: commands that only read and write files start fast."""

import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable

from mask_rcnn_jax.errors import Stopped, UserError
from mask_rcnn_jax.files import ANY_TEXT

# Control characters, and line breaks that are not those of a message: its further lines are indented.
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]|\n(?!  )")


def run(main: Callable[[], int | None], *, when_interrupted: str = "interrupted") -> int:
    """Runs a command; returns its exit status: 0, or what `main` returns; 2 for a user's mistake, 75 (the system's
    EX_TEMPFAIL: try again) where a signal stopped it in good order, 130 for Ctrl-C. Bugs keep their traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=ANY_TEXT)  # whatever a file is called; standard error escapes it
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of what it is asked to do, such as reading only
    # data.max_pixels decides what is too large, with a sentence, and not Pillow.
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")
    try:
        return main() or 0
    except UserError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return os.EX_TEMPFAIL
    except KeyboardInterrupt:
        print(when_interrupted, file=sys.stderr)
        return 130


def printable(message: str) -> str:
    """Return the message with escapes for what a file's name may do to a terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), message)
