"""Runs a script whose process keeps what it compiles, also where it is not the first of its run.

jax lets the first process of several write to the compilation cache only, and the programs of the others have keys of
their own: they would be compiled in every run of the tests.
"""

import runpy
import sys
from types import SimpleNamespace
from typing import Any
from unittest import mock

from jax._src import compiler

_FIRST = SimpleNamespace(global_state=SimpleNamespace(process_id=0))
_write = compiler._cache_write


def _write_as_first(*arguments: Any) -> None:
    with mock.patch.object(compiler, "distributed", _FIRST):
        _write(*arguments)


if __name__ == "__main__":
    compiler._cache_write = _write_as_first
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
