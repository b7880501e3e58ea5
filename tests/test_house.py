"""What keeps the house in order: who may import whom, lint, types, and the size and wording of files."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from mask_rcnn_jax.extras import EXTRAS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mask_rcnn_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Each layer and the others of the package that it may import; docs/architecture.md draws this.
LEAVES = {
    "disk",
    "errors",
    "extras",
    "structures",
    "sharding",
    "processes",
    "ranges",
    "value_names",
}
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "arrays": {"errors"},
    "extras": {"errors"},
    "ranges": {"errors"},
    "value_names": {"errors"},
    "rle": {"ranges"},
    "config": {"errors", "ranges"},
    "python_files": {"config", "errors", "disk"},
    "configs": set(),
    "disk": {"errors"},
    "media": {"disk", "errors", "extras"},
    "structures": set(),
    "sharding": set(),
    "failures": {"errors"},
    "processes": {"errors", "failures"},
    "ops": LEAVES,
    "models": {"ops"} | LEAVES,
    "data": {"arrays", "disk", "errors", "extras", "media", "ranges", "rle", "structures"},
    "visualize": {"data", "disk", "errors", "media", "rle", "structures"},
    "pretrained": {"arrays", "models", "ops"} | LEAVES,
    "inference": {"models", "ops", "data", "media", "config", "rle"} | LEAVES,
    "evaluation": {"inference", "models", "ops", "data", "rle"} | LEAVES,
    "export": {"inference", "models", "ops", "data"} | LEAVES,
    "training": {"evaluation", "inference", "pretrained", "models", "ops", "data", "config", "python_files"} | LEAVES,
}
LAYERS["studies"] = {"training", "evaluation", "data", "config", "python_files"} | LEAVES
LAYERS["planning"] = {"training", "inference", "models", "data"} | LEAVES
LAYERS["cli"] = set(LAYERS)
FULLEST = 12  # files in a folder of the package

# The third-party packages that a layer is limited to, and those that are kept out of it.
ONLY = {
    "errors": set(),
    "extras": set(),
    "config": set(),
    "configs": set(),
    "ranges": set(),
    "value_names": set(),
    "disk": set(),
    "arrays": {"numpy"},
    "structures": {"jax", "jaxtyping", "numpy"},
    "sharding": {"jax"},
    "ops": {"jax", "jaxtyping", "numpy"},
}
DEVICE_PACKAGES = {"jax", "flax", "optax", "orbax"}
NEVER = {layer: DEVICE_PACKAGES if layer in ("data", "media", "visualize") else {"flax"} for layer in LAYERS}
NEVER["models"] = set()


def imports(path: Path) -> Iterator[str]:
    """The absolute dotted names that a file imports, at its top or inside functions."""
    yield from imported_by(ast.parse(path.read_text()))


def imported_by(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"from {'.' * node.level} imports relatively; write the package's name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if layer == "__init__":
        return
    assert layer in LAYERS, f"{layer} has no place in the layers; give it one here and in docs/architecture.md"
    for name in imports(path):
        package, _, rest = name.partition(".")
        if package == "mask_rcnn_jax":
            assert rest.partition(".")[0] in LAYERS[layer] | {layer, "__version__"}, f"{layer} may not import {name}"
        elif package not in sys.stdlib_module_names:
            assert package not in NEVER[layer], f"{layer} may not import {name}"
            assert package in ONLY.get(layer, {package}), f"{layer} may not import {name}"


def test_no_folder_is_crowded() -> None:
    for folder in {path.parent for path in MODULES}:
        assert len(list(folder.glob("*.py"))) <= FULLEST, f"{folder} has more than {FULLEST} files; give them rooms"


def test_nothing_but_a_config_imports_a_config() -> None:
    for path in source_files():
        imported = {name.removeprefix("mask_rcnn_jax.") for name in imports(path)}
        found = {name for name in imported if name.startswith("configs.")}
        assert not found or path.parent in (ROOT / "configs", ROOT / "examples") or ROOT / "tests" in path.parents, path
        assert not any(name.startswith("configs") for name in imports(path)), f"{path}: not there when it is installed"


# Imported by functions that call `require` before.
NEED_AN_EXTRA = {"training/reporting/curves.py", "studies/plots.py", "export/onnx_graph.py", "export/to_onnx.py"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_packages_of_extras_are_required_before_they_are_imported(path: Path) -> None:
    extra_of = {package: extra for extra, packages in EXTRAS.items() for package in packages}
    tree = ast.parse(path.read_text())
    if str(path.relative_to(PACKAGE)) not in NEED_AN_EXTRA:
        at_top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        assert not {name.partition(".")[0] for name in imported_by(at_top)} & extra_of.keys()
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and path.name != "runtime.py":  # which is copied without the package
            required = {extra_of.get(name.partition(".")[0]) for name in imported_by(function)} - {None}
            assert not required or 'require("' in (ast.get_source_segment(path.read_text(), function) or "")


def test_extras_are_those_of_the_metadata() -> None:
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    everything = set(re.findall(r"\w+", metadata["all"][0].partition("[")[2]))
    assert everything == EXTRAS.keys() - {"wandb", "plan-gpu", "plan-tpu"}
    assert metadata.keys() == EXTRAS.keys() | {"cuda13", "tpu", "all", "dev"}


def test_no_docstring_begins_with_a_question() -> None:
    """A function's begins with a verb, a class's and a module's with a noun."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    question = r"(What|Which|Whether|How|Where)\b"
    texts = [
        (path, ast.get_docstring(node) or "")
        for path in (*MODULES, *(ROOT / "benchmarks").glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, kinds)
    ]
    assert not [f"{path}: {text.splitlines()[0]}" for path, text in texts if re.match(question, text)]


def test_lint() -> None:
    check("ruff", "check", "--no-cache", "--output-format", "concise")


def test_format() -> None:
    check("ruff", "format", "--no-cache", "--check", "--diff", "--quiet")


@pytest.mark.slow
def test_types() -> None:
    """As `make lint`, which takes half a minute of processor time for it."""
    probe = subprocess.run([sys.executable, "-m", "pyright", "--version"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"pyright could not be fetched: {probe.stderr.strip().splitlines()[-1:]}")
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout[done.stdout.index("{") :])
    assert report["summary"]["filesAnalyzed"] >= len(MODULES)
    found = [
        f"{Path(item['file']).relative_to(ROOT)}:{item['range']['start']['line'] + 1}: {item['message']}"
        for item in report["generalDiagnostics"]
        if item["severity"] == "error"
    ]
    assert not found, "\n".join(found)


def test_files_can_be_read_at_a_sitting() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in source_files()}
    long = {name: lines for name, lines in lengths.items() if lines > (450 if name.startswith("tests/") else 350)}
    assert not long


def test_files_speak_of_no_machine_and_leave_nothing_open() -> None:
    # The brackets keep the patterns from finding themselves.
    patterns = [r"(?<![\w.~])/(work|root|home|Users)/\w", r"\b(TOD[O]|FIXM[E]|XX[X])\b", r"\b([Cc]omprehensiv[e])\b"]
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("needs a git checkout, which tells the project's files from others")
    found = []
    for name in done.stdout.split("\0"):
        path = ROOT / name
        if not path.is_file() or path.suffix in (".png", ".jpg", ".npz", ".npy"):
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            found += [f"{name}:{number}: {line.strip()}" for pattern in patterns if re.search(pattern, line)]
    assert not found, "\n".join(found)


def source_files() -> list[Path]:
    """The project's Python files; environments and data that lie in the checkout are not."""
    folders = [PACKAGE, ROOT / "benchmarks", ROOT / "configs", ROOT / "examples", ROOT / "tests"]
    return sorted([*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))])


def check(*command: str) -> None:
    """Runs a tool over the project's Python files; its complaints are the failure's message."""
    paths = [str(path.relative_to(ROOT)) for path in source_files()]
    done = subprocess.run(
        [sys.executable, "-m", *command, *paths], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
