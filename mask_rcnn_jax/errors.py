"""The exceptions that are not bugs."""


class UserError(Exception):
    """A mistake in a file, key, or argument; its message is one sentence that names it and says what to do.

    Commands print the message and exit with status 2. Every other exception is a bug and keeps its traceback.
    """


class Stopped(Exception):
    """A run was asked to end before its last step, and did so in good order. Commands exit with status 75."""
