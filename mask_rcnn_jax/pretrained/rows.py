"""Parts of predictors, one a class, keypoint or kind of stuff, taken by the names of these."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Matched:
    """For each name of a model, its place among the names of the weights; None where it is not there."""

    names: tuple[str, ...]
    places: tuple[int | None, ...]
    count: int  # names of the weights

    @property
    def same(self) -> bool:
        return self.places == tuple(range(self.count))

    @property
    def kept(self) -> list[str]:
        return [name for name, place in zip(self.names, self.places, strict=True) if place is not None]

    @property
    def reset(self) -> list[str]:
        return [name for name, place in zip(self.names, self.places, strict=True) if place is None]

    def describe(self, what: str) -> list[str]:
        """Return what is kept of the predictors of `what`, line by line; nothing where nothing is."""
        if self.same:
            return [f"  predictors kept: its {what} are the same"]
        if not self.kept:
            return []
        if not self.reset and len(self.names) == self.count:
            return [f"  predictors reordered by name: its {what} are the same in another order"]
        kept = f"  predictors kept by name for {len(self.kept)} of its {self.count} {what}: {listed(self.kept)}"
        return [kept, f"  not among its {what}, so reset at random: {listed(self.reset)}"] if self.reset else [kept]


@dataclass(frozen=True)
class ByName:
    """The classes, keypoints and kinds of stuff of a model among those of the weights. None: unknown, so that their
    number decides.
    """

    classes: Matched | None = None
    keypoints: Matched | None = None
    kinds: Matched | None = None  # the first is that of all things

    def take(self, path: str, array: np.ndarray, initial: np.ndarray) -> np.ndarray | None:
        """Return the values of the predictor at `path`: those of `array` by name, and of `initial` for other names.

        The last axis is that of the names, and PointRend's layers have classes at the end of the first as well. None
        where the array is no predictor with a part for each name.
        """
        for pattern, matched, each, background in (
            (r"(box_head|cascade/stage\d)/class_logits/\w+", self.classes, 1, 1),
            (r"box_head/box_deltas/\w+", self.classes, 4, 0),
            (r"mask_head/(point_head/)?predictor_\w+", self.classes, 1, None),
            (r"mask_head/(coarse_head/)?prediction/\w+", self.classes, None, 0),
            (r"keypoint_head/deconv/\w+", self.keypoints, 1, 0),
            (r"mask_head/point_head/fc\d/kernel", self.classes, 0, 0),
            (r"semantic_head/predictor/\w+", self.kinds, 1, 0),
        ):
            if matched is not None and re.fullmatch(pattern, path):
                if background is None:  # there is one where masks are of a softmax
                    background = int(array.shape[-1] == matched.count + 1)
                return _take(matched, array, initial, each, background, reads_classes(path))
        return None

    def is_reset(self, path: str) -> bool:
        """Tell whether no name of the predictor at `path`, which `take` knows, is among those of the weights."""
        of_head = {"keypoint_head": self.keypoints, "semantic_head": self.kinds}
        matched = of_head.get(path.partition("/")[0], self.classes)
        return matched is not None and not matched.kept


BY_NUMBER = ByName()


def match(of_weights: Sequence[str], of_model: Sequence[str]) -> Matched | None:
    """Find the names of the model among those of the weights; None where either has none.

    A name that occurs several times is found as often as it is there, one after the other.
    """
    if not of_weights or not of_model:
        return None
    places = {name: place for place, name in enumerate(_numbered(of_weights))}
    return Matched(tuple(of_model), tuple(map(places.get, _numbered(of_model))), len(of_weights))


def match_kinds(of_weights: Sequence[str], of_model: Sequence[str]) -> Matched | None:
    """Find the kinds of stuff of the model among those of the weights, as `match` does, behind that of all things."""
    return match(("things", *of_weights), ("things", *of_model)) if of_weights and of_model else None


def _numbered(names: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Each name with how often it has occurred before."""
    seen: Counter[str] = Counter()
    for name in names:
        yield name, seen[name]
        seen[name] += 1


def listed(names: Sequence[str], separator: str = ", ", shown: int = 5) -> str:
    """Join the first few names, and say how many more there are."""
    text = separator.join(names[:shown])
    return f"{text}{separator}and {len(names) - shown} more" if len(names) > shown else text


def reads_classes(path: str) -> bool:
    """Tell whether the last inputs of the layer at `path` are one a class."""
    return re.fullmatch(r"mask_head/point_head/(fc\d/|predictor_)kernel", path) is not None


def _take(
    matched: Matched, array: np.ndarray, initial: np.ndarray, each: int | None, background: int, inputs: bool
) -> np.ndarray | None:
    """`each` is the number of outputs a name: None leaves it to the array, and 0 says that outputs have no names."""
    number = array.shape[-1] // matched.count if each is None else each
    outputs = _places(matched, array.shape[-1], initial.shape[-1], number, background)
    rows = _places(matched, array.shape[0], initial.shape[0], 1, 0, after=True) if inputs else None
    same = array.ndim == initial.ndim and array.shape[inputs:-1] == initial.shape[inputs:-1]
    if outputs is None or not same or (inputs and rows is None):
        return None
    taken = np.array(initial)
    if rows is not None:
        taken[np.ix_(rows[0], outputs[0])] = array[np.ix_(rows[1], outputs[1])]
    else:
        taken[..., outputs[0]] = array[..., outputs[1]]
    return taken


def _places(
    matched: Matched, given: int, wanted: int, each: int, background: int, *, after: bool = False
) -> tuple[list[int], list[int]] | None:
    """The places of one axis to fill and those to fill them from; None where its sizes are others than the names'.

    The names come first, or `after` all else.
    """
    if each == 0:
        return (list(range(wanted)), list(range(given))) if given == wanted else None
    before, rest = (
        size - each * count - background for size, count in ((given, matched.count), (wanted, len(matched.names)))
    )
    if before != rest or before < 0 or (before and not after):
        return None
    pairs = [(i, i) for i in range(before)]
    for index, place in enumerate(matched.places):
        if place is not None:
            pairs += [(before + each * index + i, before + each * place + i) for i in range(each)]
    if background and matched.kept:
        pairs.append((wanted - 1, given - 1))  # it goes with whatever is kept
    return [target for target, _ in pairs], [source for _, source in pairs]
