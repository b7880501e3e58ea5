"""Overrides, stores, and loads configurations, which are nested frozen dataclasses.

Nothing here knows any configuration class: the annotations say what a key may hold. They may use `int`, `float`,
`bool`, `str`, `None`, `Literal`, `tuple`, dataclasses, and unions of these. An abstract class stands for all
dataclasses that derive from it, of this package or of whoever has defined some; a stored name imports nothing.

A configuration becomes a tree of JSON values, with the class of each dataclass under "type"; overriding edits that tree
and loads it again, so that a file and a command line are checked by the same code, and each class is constructed once,
from its final values.
"""

import dataclasses
import difflib
import inspect
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar

from mask_rcnn_jax import ranges
from mask_rcnn_jax.errors import UserError

Config = TypeVar("Config")


class UnknownClass(UserError):
    """A class that is named where any of its kind may stand, and that nobody has defined."""


_LONGEST_KEY = 100
_TYPE = "type"  # the key that holds a dataclass's name; no field may have it


def override(config: Config, assignments: Sequence[str]) -> Config:
    """`config` with `"a.b=c"` assignments applied in order, each value read as its key's annotation says.

    Tuples are comma lists, with or without brackets, and `a.b[0]` is the first item of one; `none` is None; quotes keep
    a string that reads as something else.
    `key=ClassName` switches a key to that dataclass with its defaults, and leaves it alone where it is one already.
    Raises UserError for a key that does not exist, with the nearest ones, and for a value of the wrong type.
    """
    tree = to_json(config)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"'{assignment}' is not of the form key=value")
        _assign(type(config), tree, key.strip(), text.strip())
    return from_json(type(config), tree) if assignments else config


def to_json(config: object) -> dict[str, Any]:
    """The tree of JSON values that `from_json` turns into an equal configuration."""
    tree = _plain(config)
    if not isinstance(tree, dict):
        raise TypeError(f"a configuration is a dataclass, not {config!r}")
    return tree


def from_json(cls: type[Config], tree: object) -> Config:
    """The `cls` that `to_json` turned into `tree`.

    Raises UserError naming the key where one is unknown or missing, or where a value has the wrong type or is out of
    range. A setting marked `AddedLater` may be missing.
    """
    return _load(tree, cls, "")


def checked(config: Config) -> Config:
    """Return a configuration that was made in Python as one that was loaded: checked, and of the types it promises.

    Raises UserError as `from_json` does.
    """
    return from_json(type(config), to_json(config))


def differences(a: object, b: object) -> list[str]:
    """One line "key: value in a != value in b" for each key in which two configurations differ."""
    return list(_differences(_plain(a), _plain(b), ""))


# --- To JSON values ---------------------------------------------------------------------------------------------------


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if ranges.forgotten(type(value)):
            raise UserError(f"{type(value).__name__} is no dataclass of its own; put @dataclass(frozen=True) above it")
        names = [field.name for field in dataclasses.fields(value) if field.init]
        if _TYPE in names:
            raise TypeError(f"{type(value).__name__} may not have a field named {_TYPE!r}")
        return {_TYPE: type(value).__name__} | {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _differences(a: Any, b: Any, key: str) -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict) and a[_TYPE] == b[_TYPE]:
        for name in a:
            yield from _differences(a[name], b[name], _join(key, name))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b) and all(isinstance(x, dict) for x in a):
        for i, items in enumerate(zip(a, b, strict=True)):
            yield from _differences(*items, f"{key}[{i}]")
    elif a != b:
        yield f"{key or 'config'}: {_shown(a)} != {_shown(b)}"


def _shown(tree: Any) -> str:
    return tree[_TYPE] if isinstance(tree, dict) else repr(tree)


# --- From JSON values -------------------------------------------------------------------------------------------------


def _load(tree: Any, annotation: Any, key: str) -> Any:
    """`tree` as the annotation has it, or UserError naming `key`."""
    members = _members(annotation)
    if isinstance(tree, dict):
        classes = [member for member in members if dataclasses.is_dataclass(member)]
        return _load_dataclass(tree, classes, key, is_open=any(map(_is_abstract, _union(annotation))))
    for member in members:
        origin = typing.get_origin(member)
        if origin is tuple and isinstance(tree, list | tuple):
            arguments = typing.get_args(member)
            if len(arguments) == 2 and arguments[1] is Ellipsis:
                arguments = (arguments[0],) * len(tree)
            if len(tree) == len(arguments):
                items = zip(tree, arguments, strict=True)
                return tuple(_load(item, argument, f"{key}[{i}]") for i, (item, argument) in enumerate(items))
        elif origin is Literal:
            if any(tree == choice and type(tree) is type(choice) for choice in typing.get_args(member)):
                return tree
        elif member is float and type(tree) is int and abs(tree) <= sys.float_info.max:
            return float(tree)
        elif type(tree) is member:  # not isinstance: a bool is no int here
            if isinstance(tree, str) and "\0" in tree:  # which no name of a file may have
                raise UserError(f"{key}: {ranges.shown(tree)} holds the character NUL; remove it")
            return tree
    raise UserError(f"{key or 'config'}: expected {_describe(annotation)}, not {ranges.shown(tree)}")


def _load_dataclass(tree: dict[str, Any], classes: Sequence[Any], key: str, is_open: bool) -> Any:
    name = tree.get(_TYPE)
    named = [cls for cls in classes if cls.__name__ == name]
    if not named:
        expected = " or ".join(cls.__name__ for cls in classes) or "no table"
        message = f"{_join(key, _TYPE)}: expected {expected}, not {ranges.shown(name)}"
        if is_open:
            raise UnknownClass(f"{message}; a class of your own is known once its file is loaded: --plugin FILE")
        raise UserError(message)
    if len(named) > 1:
        where = " and ".join(cls.__module__ for cls in named)
        raise UserError(f"{_join(key, _TYPE)}: {ranges.shown(name)} is a class of {where}; give one another name")
    (cls,) = named
    hints = _hints(cls)
    for unknown in sorted(tree.keys() - hints.keys() - {_TYPE}):
        raise UserError(_unknown_key(_join(key, unknown), [_join(key, known) for known in hints]))
    defaults = ranges.may_be_missing(cls)
    for missing in sorted(hints.keys() - tree.keys() - defaults.keys()):
        raise UserError(f"{_join(key, missing)} is missing")
    loaded = {name: _load(tree[name], hint, _join(key, name)) for name, hint in hints.items() if name in tree}
    values = defaults | loaded
    ranges.check_fields(cls, values, key)
    try:
        return cls(**values)
    except ValueError as error:  # a class's own check in __post_init__
        raise UserError(f"{key or cls.__name__}: {error}") from error


# --- From the command line --------------------------------------------------------------------------------------------


def _assign(cls: Any, tree: dict[str, Any], key: str, text: str) -> None:
    """Sets the dotted `key` of `tree`, which holds a `cls`, to what `text` reads as; `a[0]` is an item of a tuple."""
    node: Any = tree
    annotation, parts = cls, key.replace("[", ".[").split(".")
    for depth, part in enumerate(parts):
        place: Any = part
        if isinstance(node, dict):
            cls = next(member for member in _members(annotation) if getattr(member, "__name__", None) == node[_TYPE])
            if part not in _hints(cls):
                raise UserError(_unknown_key(key, list(_keys(tree))))
            annotation = _hints(cls)[part]
        elif (items := _items(node, annotation)) and part in items:
            place, annotation = items[part]
        else:
            parent = ".".join(parts[:depth]).replace(".[", "[")
            raise UserError(f"no key {key}: {parent} is {_shown(node)}, expected {_describe(annotation)}")
        if depth < len(parts) - 1:
            node = node[place]
            continue
        try:
            node[place] = _parse(text, annotation, node[place])
        except ValueError:
            raise UserError(f"{key}={text}: expected {_describe(annotation)}, not '{text}'") from None


def _items(node: Any, annotation: Any) -> dict[str, tuple[int, Any]]:
    """The index and the annotation of each item of a tuple, by the part of a key that names it."""
    tuples = [member for member in _members(annotation) if typing.get_origin(member) is tuple]
    if not isinstance(node, list) or len(tuples) != 1:
        return {}
    arguments = typing.get_args(tuples[0])
    each = arguments[:1] * len(node) if arguments[1:] == (Ellipsis,) else arguments
    return {f"[{i}]": (i, argument) for i, argument in enumerate(each)}


def _parse(text: str, annotation: Any, present: Any = None) -> Any:
    """`text` as a tree that fits the annotation, or ValueError. `present` is the tree that it replaces."""
    # A string takes anything, so it is tried last.
    for member in sorted(_members(annotation), key=lambda member: member is str):
        try:
            return _parse_member(text, member, present)
        except ValueError:
            continue
    raise ValueError(text)


def _parse_member(text: str, member: Any, present: Any) -> Any:
    origin = typing.get_origin(member)
    if member is types.NoneType and text.lower() in ("none", "null"):
        return None
    if member is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if member is int or member is float:
        return member(text)
    if member is str:
        return _unquote(text)
    if origin is Literal:
        for choice in typing.get_args(member):
            if str(choice) == _unquote(text):
                return choice
    if origin is tuple:
        items, arguments = _split(text), typing.get_args(member)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            try:
                return [_parse(item, arguments[0]) for item in items]
            except ValueError:  # the only item, without a comma after it
                return [_parse(text, arguments[0])]
        return [_parse(item, argument) for item, argument in zip(items, arguments, strict=True)]
    if dataclasses.is_dataclass(member) and isinstance(member, type) and text == member.__name__:
        if isinstance(present, dict) and present[_TYPE] == text:
            return present
        try:
            return _plain(member())
        except TypeError as error:
            raise UserError(f"{text} cannot be had from defaults: {error}; set it in a config file") from None
    raise ValueError(text)


def _unquote(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _split(text: str) -> list[str]:
    """The items of a comma list, which may be in one pair of brackets; commas inside brackets do not count."""
    depth, items, item, whole = 0, [], "", text[:1] in ("(", "[")
    for position, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        whole = whole and (depth > 0 or position == len(text) - 1)
        if letter == "," and depth == 0:
            items.append(item.strip())
            item = ""
        else:
            item += letter
    if depth != 0:
        raise ValueError(text)
    if whole:
        return _split(text[1:-1])
    return [*items, item.strip()] if item.strip() else items


# --- Annotations and keys ---------------------------------------------------------------------------------------------


def _members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone, and for an abstract class those that derive from it."""
    members = _union(annotation)
    return tuple(one for member in members for one in (_derived(member) if _is_abstract(member) else (member,)))


def _union(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _is_abstract(member: Any) -> bool:
    return isinstance(member, type) and inspect.isabstract(member)


def _derived(base: type) -> Iterator[type]:
    """Dataclasses that derive from an abstract one; of a file that was changed and run again, those of its last run."""
    found: dict[tuple[str, str], type] = {}
    for cls in base.__subclasses__():
        for one in _derived(cls) if _is_abstract(cls) else (cls, *_derived(cls)):
            if dataclasses.is_dataclass(one):
                file = getattr(sys.modules.get(one.__module__), "__file__", None)
                found[file or one.__module__, one.__qualname__] = one
    yield from found.values()


def _hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _describe(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if len(_members(annotation)) > 1:
        return " or ".join(_describe(member) for member in _members(annotation))
    if origin is tuple:
        return f"tuple[{', '.join('...' if argument is Ellipsis else _describe(argument) for argument in arguments)}]"
    return "none" if annotation is types.NoneType else annotation.__name__


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _keys(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if name != _TYPE:
            yield _join(prefix, name)
        items = {f"{name}[{i}]": item for i, item in enumerate(value)} if isinstance(value, list) else {name: value}
        for part, item in items.items():
            if isinstance(item, dict):
                yield from _keys(item, _join(prefix, part))


def _unknown_key(key: str, known: Sequence[str]) -> str:
    """A message with the known keys whose last part is most like that of `key`, or else with those beside it."""
    if len(key) > _LONGEST_KEY:  # no key of a person; comparing it would take minutes
        return f"no key {key[:_LONGEST_KEY]}..."

    def likeness(candidate: str) -> tuple[float, float]:
        ratios = [
            difflib.SequenceMatcher(None, a, b).ratio()
            for a, b in [(key.rpartition(".")[2], candidate.rpartition(".")[2]), (key, candidate)]
        ]
        return ratios[0], ratios[1]

    near = sorted((name for name in known if likeness(name)[0] > 0.6), key=likeness, reverse=True)
    beside = sorted(name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0])
    if near:
        return f"no key {key}; did you mean {' or '.join(near[:3])}?"
    return f"no key {key}; there are {', '.join(beside or known)}"
