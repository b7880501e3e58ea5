"""Arrays in files of unknown origin. Nothing that is in a file is ever run."""
