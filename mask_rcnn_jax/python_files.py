"""Runs Python files that a person names: configurations, and files that define classes for configurations to name."""

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import sys
import traceback
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from mask_rcnn_jax.config import checked
from mask_rcnn_jax.disk.files import is_file
from mask_rcnn_jax.errors import UserError

_CONTENT = "__content__"  # the bytes that a module was made of


def load_config_file(path: str | Path) -> object:
    """Return what `get_config()` of the Python file `path` returns.

    Raises UserError naming the file, and where it can the line, when the file is missing, fails, has no `get_config`,
    or returns something that is not a dataclass, or one with a value that `from_json` refuses.
    """
    path = Path(path)
    config = call_python_file(path, "config file", "get_config")
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise UserError(f"get_config() of {path} must return a configuration, not {config!r}")
    try:
        return checked(config)
    except UserError as error:
        raise UserError(f"get_config() of {path}: {error}") from None


def call_python_file(path: Path, what: str, function: str) -> object:
    """Return what the `function` of the Python file `path` returns, None where it is no function.

    Raises UserError, in which `what` says what the file is, as `load_python_file` does, where the file has nothing of
    that name, and where the function fails.
    """
    found = getattr(load_python_file(path, what), function, None)
    if found is None:
        raise UserError(f"{what} {path} has no function {function}()")
    with _failures_of(path):
        return found() if callable(found) else None


def load_plugins(names: Sequence[str]) -> None:
    """Run each Python file and import each module, so that configurations may name the classes that they define.

    Raises UserError naming one that is not there, or fails.
    """
    for name in names:
        if name.endswith(".py"):
            load_python_file(Path(name), "--plugin")
            continue
        try:
            importlib.import_module(name)
        except Exception as error:
            raise UserError(f"--plugin {name} cannot be imported: {type(error).__name__}: {error}") from error


def load_python_file(path: Path, what: str) -> ModuleType:
    """Run the Python file `path`, once a process, and return its module; classes that it defines may then be named.

    Raises UserError, in which `what` says what the file is, when it is missing, is no Python file, or fails.
    """
    if not is_file(path):
        raise UserError(f"{what} {path} does not exist")
    with _failures_of(path):
        file, content = str(path.resolve()), path.read_bytes()
    # By its content: processes on other hosts, which are sent its classes by name, may have it in another place.
    name = f"{path.stem}_{zlib.crc32(content):08x}"
    # Run again, it would define its classes again, and each would be another class.
    known = sys.modules.get(name)
    if known is not None and hasattr(known, _CONTENT) and known.__file__ == file:
        return known
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"{what} {path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    # A dataclass defined in the file looks its module up by name.
    sys.modules[name] = module
    folder = str(Path(file).parent)
    if folder not in sys.path:
        sys.path.append(folder)  # the file may import its neighbours, as a script may
    with _failures_of(path):
        spec.loader.exec_module(module)
    setattr(module, _CONTENT, content)
    return module


def classes_from_outside(config: object) -> dict[str, str]:
    """Return the classes of a configuration that are not this package's, each with its file and that file's sha256."""
    found: dict[str, str] = {}
    if isinstance(config, tuple):
        return {name: file for item in config for name, file in classes_from_outside(item).items()}
    if not dataclasses.is_dataclass(config):
        return found
    module = sys.modules[type(config).__module__]
    if module.__name__.partition(".")[0] != "mask_rcnn_jax" and (file := getattr(module, "__file__", None)):
        content = getattr(module, _CONTENT, None) or Path(file).read_bytes()
        found[type(config).__name__] = f"{Path(file).name} {hashlib.sha256(content).hexdigest()}"
    for field in dataclasses.fields(config):
        found |= classes_from_outside(getattr(config, field.name))
    return found


@contextlib.contextmanager
def _failures_of(path: Path) -> Iterator[None]:
    """Have whatever the file raises end in a sentence that names it, and its line."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{_failing_line(error, path)}: {type(error).__name__}: {error}") from error


def _failing_line(error: Exception, path: Path) -> str:
    own = str(path.resolve())
    if isinstance(error, SyntaxError):
        return f"{path if error.filename in (own, None) else error.filename}, line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own]
    return f"{path}, line {lines[-1]}" if lines else str(path)
