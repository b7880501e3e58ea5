"""Keypoints that change places when an image is flipped: a person's left eye is the right one of the mirror image.

Names tell: `left_eye` and `right_eye`, `leftEye`, `EyeLeft`, `lefteye`, `l_eye`, `eye-L`, `LEye`. Both of a pair must
be there, named alike. `data.keypoint_flips` names the pairs where names do not tell.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import chain

import numpy as np
from jaxtyping import Int

from mask_rcnn_jax.errors import UserError

Pairs = Sequence[tuple[str, str]]

COCO_KEYPOINTS = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
    *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
    *("left_knee", "right_knee", "left_ankle", "right_ankle"),
)

_OTHER = {"left": "right", "right": "left", "l": "r", "r": "l"}
_WORD_ENDS = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[^\W\d])(?=\d)|(?<=\d)(?=[^\W\d])")
_JOINED = re.compile(r"(left|right)(.+)|(.+?)(left|right)")
# Words that tell keypoints apart, but not by the side of the body.
_OF_NO_SIDE = ("upper", "lower", "top", "bottom", "front", "back", "inner", "outer", "start", "end")


def mirrored(names: Sequence[str], pairs: Pairs | None = None) -> Int[np.ndarray, " J"]:
    """Return the keypoint that each becomes in a mirror: those of a pair change places, others stay.

    Pairs are found by the names unless given. Raises UserError where a pair names what is no keypoint, or one twice.
    """
    position = {name: i for i, name in enumerate(names)}
    if pairs is None:
        pairs = find_pairs(names)
    for name, count in Counter(chain(*pairs)).items():
        if name not in position:
            known = f"the keypoints are {', '.join(names)}" if names else "the dataset has no keypoints"
            raise UserError(f"data.keypoint_flips names '{name}', but {known}")
        if count > 1:
            raise UserError(f"data.keypoint_flips names '{name}' {count} times; name each keypoint once")
    images = np.arange(len(names))
    for a, b in pairs:
        images[position[a]], images[position[b]] = position[b], position[a]
    return images


def find_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of names that differ in the side alone, in the names' order."""
    by_key: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in names:
        by_key[_words(name)].append(name)
    pairs: list[tuple[str, str]] = []
    for key, same in by_key.items():
        opposite = by_key.get(_opposite(key), [])
        # Names that differ in nothing but case or separators leave open which of them is meant.
        if key != _opposite(key) and len(same) == len(opposite) == 1 and (opposite[0], same[0]) not in pairs:
            pairs.append((same[0], opposite[0]))
    return pairs


def describe_flips(names: Sequence[str], pairs: Pairs | None = None) -> list[str]:
    """Say which keypoints change places in a flip, and warn of what looks like a pair and is none."""
    found = find_pairs(names) if pairs is None else pairs
    told = ", ".join(f"{a} and {b}" for a, b in found) or "none"
    warnings = unpaired(names) if pairs is None else []
    return [
        f"keypoints that change places in a flip: {told}; {len(names) - 2 * len(found)} stay in place",
        *(f"warning: {warning}" for warning in warnings),
    ]


def unpaired(names: Sequence[str]) -> list[str]:
    """Name keypoints that look like a left and a right one, or one of them, and are not found as a pair."""
    paired = {*chain(*find_pairs(names))}
    left = [name for name in names if name not in paired]
    alike = _alike(left)
    alone = [name for name in left if name not in {*chain(*alike)} and _names_side(name)]
    return [
        f"keypoints '{a}' and '{b}' stay in place in a flip; if they are a left and a right one, name the pairs in"
        " data.keypoint_flips"
        for a, b in alike
    ] + [
        f"keypoint '{name}' stays in place in a flip, as none is its counterpart on the other side; if one is, name the"
        " pairs in data.keypoint_flips"
        for name in alone
    ]


def _words(name: str) -> tuple[str, ...]:
    """The words of a name in lower case, a side that is joined to another word as a word of its own."""
    words: list[str] = []
    for word in filter(None, (word.lower() for word in _WORD_ENDS.split(name))):
        joined = _JOINED.fullmatch(word)
        words += [part for part in joined.groups() if part] if joined else [word]
    return tuple(words)


def _opposite(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_OTHER.get(word, word) for word in words)


def _names_side(name: str) -> bool:
    """Tell whether a name has a side as a word of its own; "bright" and "leftover" have none."""
    return any(word.lower() in _OTHER for word in _WORD_ENDS.split(name) if word)


def _alike(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ in one word of several, which no third name shares, or in a first or last l and r."""
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in names:
        words = _words(name)
        if len(words) > 1:
            for i, word in enumerate(words):
                rest = (*words[:i], "*", *words[i + 1 :])
                if word not in _OF_NO_SIDE and not word.isdigit() and not {*rest} & _OTHER.keys():
                    groups[rest].append(name)
        for word in (re.sub("^[lr]", "*", "".join(words)), re.sub("[lr]$", "*", "".join(words))):
            if "*" in word and len(word) > 1:
                groups[(word,)].append(name)
    pairs: list[tuple[str, str]] = []
    for group in groups.values():
        if len(group) == 2 and not {*group} & {*chain(*pairs)}:
            pairs.append((group[0], group[1]))
    return pairs
