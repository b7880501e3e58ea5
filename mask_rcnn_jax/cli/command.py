"""How every command ends. No jax here: commands that only read and write files start fast."""

import logging
import os
import sys
from collections.abc import Callable

from mask_rcnn_jax.errors import Stopped, UserError


def run(main: Callable[[], int | None], *, when_interrupted: str = "interrupted") -> int:
    """Runs a command; returns its exit status: 0, or what `main` returns; 2 for a user's mistake, 75 (the system's
    EX_TEMPFAIL: try again) where a signal stopped it in good order, 130 for Ctrl-C. Bugs keep their traceback.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of what it is asked to do, such as reading only
    try:
        return main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return os.EX_TEMPFAIL
    except KeyboardInterrupt:
        print(when_interrupted, file=sys.stderr)
        return 130
