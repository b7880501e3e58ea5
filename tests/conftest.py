"""Set-up of all tests: eight virtual CPU devices, a compilation cache, and calls whose shapes and types are checked."""

import gc
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # JAX_PLATFORMS=cuda runs the tests on a GPU
# Tests spend most of their time compiling, so everything that is compiled is kept between runs: also the thousands of
# programs of one operation, each of which takes longer to compile than to read. Commands that tests start share that.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mask_rcnn_jax" / f"jax-{version('jax')}"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import jaxtyping

from tests import typechecker
from tests.compilations import Recorder
from tests.conformance import needed
from tests.costs import Costs

# Set here and not in the environment: a command that a test starts sees the machine as a user's would.
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update("jax_num_cpu_devices", 8)

# Tracing makes many objects that live on, and searching them for garbage again and again is a tenth of its time.
gc.set_threshold(100_000, 50, 100)

typechecker.install()
# These run commands and whole models, or read thousands of real annotations, through functions that others check: a
# fifth of their time, and of reading four.
_UNCHECKED = (
    "faults",
    "conformance",
    "cli",
    "examples",
    "training/test_reproduce.py",
    "studies/test_study.py",
    "data/convert/test_real.py",
    "data/test_lint_real.py",
    "data/test_real_data.py",
)
UNCHECKED = [Path(__file__).parent / name for name in _UNCHECKED]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Checks shapes and types in what the test calls, or not."""
    jaxtyping.config.update("jaxtyping_disable", any(item.path.is_relative_to(place) for place in UNCHECKED))


def pytest_configure(config: pytest.Config) -> None:
    """Records what jax compiles from before the tests are collected."""
    recorder = Recorder()
    recorder.start()
    config.add_cleanup(recorder.stop)
    config.pluginmanager.register(Costs(recorder.drain), "costs")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the folders and files that take long, so that workers that are given files finish together."""
    first = ("conformance", "examples", "training", "models", "cli", "faults")
    dearest = [Path(__file__).parent / name for name in first]

    def rank(item: pytest.Item) -> int:
        places = (item.path, *item.path.parents)
        return next((i for i, place in enumerate(dearest) if place in places), len(dearest))

    items.sort(key=rank)


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Forgets compiled programs where there are many after a file of tests.

    Linux allows a process 65,530 mappings of memory; every loop that XLA compiles for CPU takes three, and one too many
    is a segmentation fault.
    """
    yield
    mappings = Path("/proc/self/maps")
    if mappings.is_file() and len(mappings.read_text().splitlines()) > 20_000:
        gc.unfreeze()
        jax.clear_caches()
    # What is left mostly stays to the end; it is not to be searched again when something asks for a collection.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and golden values: $MASK_RCNN_SHARED, or `shared` beside the checkout."""
    folder = needed.shared_folder()
    if not folder.is_dir():
        pytest.skip(f"needs the folder {folder}; name another with $MASK_RCNN_SHARED")
    return folder


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    """torchvision, where it is installed and its compiled operators load."""
    needed.torchvision()
    import torchvision

    return torchvision
