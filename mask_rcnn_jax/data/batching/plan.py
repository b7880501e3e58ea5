"""The records of each training step: a function of the seed and the step alone.

`n` records, `S` sizes of which one is drawn for a record.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped

from mask_rcnn_jax.data.records import Record

_MIXTURE = 1  # sets the random numbers of a mixture's sources apart from others of the same seed
_SIZES = (0, 0, 0, 1)  # and those that draw sizes


def plan_batches(
    groups: Shaped[np.ndarray, " n"] | Shaped[np.ndarray, "n S"],
    batch_size: int,
    num_steps: int,
    seed: int,
    repeats: Float[np.ndarray, " n"] | None = None,
    mixture: tuple[Int[np.ndarray, " n"], Sequence[float]] | None = None,
) -> Int[np.ndarray, "num_steps batch_size"]:
    """Choose the records, of `n`, that each step trains on, and their sizes: indices of the flattened `groups`.

    These say to which group, such as a canvas, a record of each size belongs; a batch holds one group. Epochs of fresh
    permutations follow one another, and a size is drawn for each record in them; each group collects its records in
    that order and yields a batch whenever it has enough (Detectron2's aspect-ratio grouping, without its dependence on
    the number of workers).

    An epoch holds a record as often as `repeats` says, once by default; what is left of a fraction decides by chance
    in each epoch (Detectron2's RepeatFactorTrainingSampler). With a `mixture`, the records' sources and a weight for
    each, every source has epochs of its own, and of any stretch of the plan's records each source has its share, to
    about one.
    """
    groups = np.asarray(groups)
    present = np.unique(groups)
    repeats = np.ones(len(groups)) if repeats is None else repeats
    # Every group but the last to finish may hold an incomplete batch.
    length = (num_steps + len(present)) * batch_size
    stream = _epochs(repeats, length, [seed]) if mixture is None else _shared(repeats, *mixture, length, seed)
    if groups.ndim > 1:
        sizes = groups.shape[1]
        stream = stream * sizes + np.random.default_rng([seed, *_SIZES]).integers(sizes, size=len(stream))
    drawn = groups.ravel()[stream]
    batches = []
    for group in present:
        positions = np.flatnonzero(drawn == group)
        batches.append(positions[: len(positions) // batch_size * batch_size].reshape(-1, batch_size))
    positions = np.concatenate(batches)
    in_order = positions[np.argsort(positions[:, -1])]
    return stream[in_order[:num_steps]].astype(np.int32)


def repeat_factors(records: Sequence[Record], threshold: float) -> Float[np.ndarray, " n"]:
    """Compute each record's repeats per epoch: r = max over its classes of max(1, sqrt(threshold / f)), where f is the
    share of records with the class. Crowds do not count. From Gupta et al. 2019, arXiv 1908.03195, section B.
    """
    classes = [np.unique(record.classes[~record.iscrowd]) for record in records]
    counts = np.bincount(np.concatenate(classes)) if classes else np.zeros(0)
    by_class = np.sqrt(np.maximum(threshold * len(records) / np.maximum(counts, 1), 1))
    return np.array([by_class[found].max(initial=1) for found in classes], np.float64)


def _epochs(repeats: np.ndarray, length: int, seed: Sequence[int]) -> np.ndarray:
    """At least `length` indices: one permutation of the repeated records after the other."""
    whole, fraction = np.floor(repeats).astype(np.int64), repeats % 1
    permutations, found = [np.zeros(0, np.int64)], 0
    while found < length:
        rng = np.random.default_rng([seed[0], len(permutations) - 1, *seed[1:]])
        counts = whole + (rng.random(len(repeats)) < fraction) if fraction.any() else whole
        permutations.append(rng.permutation(np.repeat(np.arange(len(repeats)), counts)))
        found += len(permutations[-1])
    return np.concatenate(permutations)


def _shared(repeats: np.ndarray, sources: np.ndarray, weights: Sequence[float], length: int, seed: int) -> np.ndarray:
    """At least `length` indices of all sources that have records, each source evenly spread by its weight."""
    present = np.unique(sources)
    shares = np.array(weights, np.float64)[present]
    shares /= shares.sum()
    indices, times = [], []
    for source, share in zip(present.tolist(), shares.tolist(), strict=True):
        members = np.flatnonzero(sources == source)
        count = int(np.ceil(share * (length + len(present)))) + 1
        indices.append(members[_epochs(repeats[members], count, [seed, source, _MIXTURE])[:count]])
        times.append((np.arange(count) + 0.5) / share)
    order = np.argsort(np.concatenate(times), kind="stable")
    return np.concatenate(indices)[order[:length]]
