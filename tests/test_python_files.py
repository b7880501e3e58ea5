"""Python files that a person names, and classes of theirs where a configuration has an abstract one."""

import abc
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from mask_rcnn_jax.config import UnknownClass, from_json, override, to_json
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.python_files import classes_from_outside, load_config_file, load_plugins
from mask_rcnn_jax.ranges import Positive


@dataclass(frozen=True)
class Part(abc.ABC):
    @abc.abstractmethod
    def build(self) -> int: ...


@dataclass(frozen=True)
class Known(Part):
    size: Positive = 1

    def build(self) -> int:
        return self.size


@dataclass(frozen=True)
class Whole:
    part: Part = Known()
    other: Part | None = None


def test_a_config_file_may_define_its_classes(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n"
        "@dataclass(frozen=True)\nclass Mine:\n    a: int = 1\n    b: Mine | None = None\n\n"
        "def get_config():\n    return Mine()\n"
    )
    config: Any = load_config_file(path)
    assert override(config, ["a=2", "b=Mine"]).b.a == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n", ["mine.py", "no function get_config()"]),
        ("x = 1\ny = x / 0\n", ["mine.py, line 2", "ZeroDivisionError"]),
        ("import no_such_module\n", ["mine.py, line 1", "no_such_module"]),
        ("def get_config():\n    return missing\n", ["mine.py, line 2", "missing"]),
        ("def get_config(:\n", ["mine.py, line 1", "SyntaxError"]),
        ("def get_config():\n    return 5\n", ["mine.py", "5"]),
        ("def get_config():\n    return None\n", ["mine.py", "None"]),
    ],
)
def test_what_is_wrong_with_a_config_file_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config_file(path)
    for word in words:
        assert word in str(caught.value)


def test_a_config_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.py does not exist"):
        load_config_file(tmp_path / "none.py")
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(UserError, match=r"must end in \.py"):
        load_config_file(tmp_path / "mine.txt")


def test_ranges_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("from tests.test_python_files import Known\n\ndef get_config():\n    return Known(size=0)\n")
    with pytest.raises(UserError, match=r"get_config\(\) of .*mine\.py: size must be at least 1, not 0"):
        load_config_file(path)


# --- Classes of others ------------------------------------------------------------------------------------------------

PLUGIN = """
from dataclasses import dataclass
from tests.test_python_files import Part

@dataclass(frozen=True)
class {name}(Part):
    depth: int = {depth}

    def build(self):
        return 10 * self.depth
"""


def write(path: Path, name: str, depth: int = 2) -> str:
    path.write_text(PLUGIN.format(name=name, depth=depth))
    return str(path)


def test_a_class_is_known_once_its_file_is_loaded_and_not_before(tmp_path):
    stored = {"type": "Whole", "part": {"type": "Deep", "depth": 7}, "other": None}
    with pytest.raises(
        UnknownClass, match=r"^part\.type: expected Known.*, not 'Deep'; a class of your own is .*--plugin"
    ):
        from_json(Whole, stored)
    load_plugins([write(tmp_path / "deep.py", "Deep")])
    whole = from_json(Whole, stored)
    assert whole.part.build() == 70
    assert to_json(whole) == stored
    whole = override(whole, ["part.depth=3", "other=Deep"])
    assert (whole.part.build(), whole.other.build()) == (30, 20)
    assert override(whole, ["part=Known"]).part == Known()


def test_a_stored_name_imports_nothing(tmp_path, monkeypatch):
    write(tmp_path / "lurking.py", "Lurking")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("Lurking", "lurking.Lurking", "lurking:Lurking", "Part", "object", 5, None):
        with pytest.raises(UserError):
            from_json(Whole, {"type": "Whole", "part": {"type": name}, "other": None})
    load_plugins(["lurking"])  # a module, by its name
    assert (
        from_json(Whole, {"type": "Whole", "part": {"type": "Lurking", "depth": 1}, "other": None}).part.build() == 10
    )


def test_a_file_is_run_once_and_again_when_it_was_changed(tmp_path):
    file = write(tmp_path / "fresh.py", "Fresh")
    load_plugins([file, file])
    first = override(Whole(), ["part=Fresh"]).part
    load_plugins([file])
    assert type(override(Whole(), ["part=Fresh"]).part) is type(first)
    load_plugins([write(tmp_path / "fresh.py", "Fresh", depth=3)])
    assert override(Whole(), ["part=Fresh"]).part.build() == 30
    assert from_json(Whole, to_json(Whole(first))).part.build() == 20  # its settings, in the class as it is now
    write(tmp_path / "other.py", "Fresh", depth=4)
    load_plugins([str(tmp_path / "other.py")])
    with pytest.raises(UserError, match=r"'Fresh' is a class of fresh_\w+ and other_\w+; give one another name"):
        from_json(Whole, {"type": "Whole", "part": {"type": "Fresh", "depth": 1}, "other": None})


def test_files_of_the_same_content_are_run_each(tmp_path):
    """What they return may lie beside them."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(
            "from pathlib import Path\nfrom tests.test_python_files import Known, Whole\n"
            "size = len((Path(__file__).parent / 'text').read_text())\n"
            "def get_config():\n    return Whole(Known(size))\n"
        )
    (tmp_path / "a" / "text").write_text("12345")
    (tmp_path / "b" / "text").write_text("12")
    sizes = [load_config_file(tmp_path / name / "mine.py").part.size for name in ("a", "b", "a")]
    assert sizes == [5, 2, 5]


def test_plugins_that_are_not_there_or_fail_are_named(tmp_path):
    (tmp_path / "broken.py").write_text("x = 1\nraise OSError('no such thing')\n")
    for name, message in [
        (str(tmp_path / "nowhere.py"), r"--plugin .*nowhere\.py does not exist"),
        (str(tmp_path / "broken.py"), r"broken\.py, line 2: OSError: no such thing"),
        ("no_such_module_here", "--plugin no_such_module_here cannot be imported: ModuleNotFoundError"),
        ("", "--plugin  cannot be imported: ValueError"),
    ]:
        with pytest.raises(UserError, match=message):
            load_plugins([name])


def test_classes_from_outside_are_told_with_the_hash_of_their_file(tmp_path):
    assert classes_from_outside(Known()).keys() == {"Known"}  # a test is outside as well
    load_plugins([write(tmp_path / "hashed.py", "Hashed")])
    told = classes_from_outside(override(Whole(), ["other=Hashed"]))
    assert told.keys() == {"Whole", "Known", "Hashed"}
    assert told["Hashed"].startswith("hashed.py ")
    assert len(told["Hashed"].split()[1]) == 64
    (tmp_path / "hashed.py").write_text("# another")
    assert classes_from_outside(override(Whole(), ["other=Hashed"])) == told  # that which was run
    assert json.loads(json.dumps(told)) == told
    assert classes_from_outside(replace(Whole(), part=Known(3))).keys() == {"Whole", "Known"}
