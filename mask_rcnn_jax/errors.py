"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """A mistake in a file, key, or argument; its message is one sentence that names it and says what to do.

    Commands print the message and exit with status 2. Every other exception is a bug and keeps its traceback.
    """
