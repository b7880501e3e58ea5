"""How every command ends. No jax here: commands that only read and write files start fast."""

import logging
import sys
from collections.abc import Callable

from mask_rcnn_jax.errors import UserError


def run(main: Callable[[], None], *, when_interrupted: str = "interrupted") -> int:
    """Runs a command; returns its exit status: 0, 2 for a user's mistake, 130 for Ctrl-C. Bugs keep their traceback."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of what it is asked to do, such as reading only
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(when_interrupted, file=sys.stderr)
        return 130
    return 0
