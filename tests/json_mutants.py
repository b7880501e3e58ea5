"""Seeded mutants of JSON files: each differs from a sound one by a few values, keys or bytes."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

_DEEP = "@deep@"  # stands for lists nested too deeply for json.dumps
_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 20, 0.5, 12.0, 1e7, 1e8, -1e9, 1e300, -1e300),
    *(2**31, 2**32, 2**62, 2**63, -(2**63), 10**20, 10**400, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        " ",
        "x",
        "7",
        "1e999",
        "null",
        "\0",
        "a\0.png",
        "\ud800",
        "\udcff",
        "é" * 2000,
        "../../x.png",
        "/",
        "..",
        ".",
    ),
    *([], {}, [None], [[]], [{}], ["a"], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6], [1e8, 0, 0, 1e8, 1e8, 1e8], [[1, 1]] * 4),
    *([0, 10**9], [2**62] * 4, [-1, 193], {"size": [12, 16], "counts": "0" * 300}, {"0": 1}, _DEEP, [_DEEP]),
]


def mutants(tree: Any, count: int, seed: int) -> Iterator[bytes]:
    """Yield `count` mutants of a JSON tree as text; one in ten is broken as text, by a byte or its end."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        mutant = [copy.deepcopy(tree)]  # so that the root can be replaced too
        for _ in range(int(rng.choice([1, 1, 1, 2, 3, 5]))):
            _mutate(mutant, rng)
        depth = int(rng.choice([60, 500, 940, 5000]))
        text = json.dumps(mutant[0]).replace(json.dumps(_DEEP), "[" * depth + "]" * depth).encode()
        yield _broken(text, rng) if rng.random() < 0.1 else text


def _mutate(root: list[Any], rng: np.random.Generator) -> None:
    parent, key = _choose(root, rng)
    match rng.integers(6):
        case 0 if parent is not root:
            del parent[key]
        case 1 if isinstance(parent, list) and parent is not root:
            parent.insert(key, copy.deepcopy(parent[key]))
        case 2 if isinstance(parent, dict):
            parent[str(rng.choice(["id", "x", "bbox", "\ud800", ""]))] = parent.pop(key)
        case 3:  # a value from elsewhere
            source, at = _choose(root, rng)
            parent[key] = copy.deepcopy(source[at])
        case _:
            parent[key] = copy.deepcopy(_VALUES[rng.integers(len(_VALUES))])


def _choose(root: list[Any], rng: np.random.Generator) -> tuple[Any, Any]:
    """A container of the tree and a key in it: levels are walked down until a coin says to stop."""
    parent, key = root, 0
    while isinstance(parent[key], list | dict) and parent[key] and rng.random() < 0.95:
        parent = parent[key]
        key = list(parent)[rng.integers(len(parent))] if isinstance(parent, dict) else int(rng.integers(len(parent)))
    return parent, key


def _broken(text: bytes, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(len(text)))
    match rng.integers(5):
        case 0:
            return text[:at]
        case 1:
            return text[:at] + bytes([rng.integers(256)]) + text[at + 1 :]
        case 2:
            return b"\xef\xbb\xbf" + text
        case 3:
            return text.decode().encode("utf-16")
        case _:
            return text[:at] + text[int(rng.integers(len(text))) :]
