"""Records compared bit for bit."""

import numpy as np


def assert_same_records(found, expected, ignore=()):
    """Every field of every record has the same type and bits, but for those in `ignore`, as do the encoded images."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        for name in ("image_id", "path", "height", "width", "source"):
            assert name in ignore or getattr(a, name) == getattr(b, name), name
        for name in ("boxes", "classes", "iscrowd", "areas", "annotation_ids", "keypoints"):
            if name not in ignore:
                assert_same_bits(getattr(a, name), getattr(b, name))
        assert len(a.segmentations) == len(b.segmentations)
        for one, two in zip(a.segmentations, b.segmentations, strict=True):
            if isinstance(two, dict):
                assert one == two
            else:
                assert len(one) == len(two)
                for polygon, other in zip(one, two, strict=True):
                    assert_same_bits(polygon, other)
        if b.federated is None:
            assert a.federated is None
        else:
            assert_same_bits(a.federated.absent, b.federated.absent)
            assert_same_bits(a.federated.not_exhaustive, b.federated.not_exhaustive)
        if "image" not in ignore:
            with a.open() as first, b.open() as second:
                assert first.read() == second.read()


def assert_same_bits(a, b):
    if b is None:
        assert a is None
        return
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b, strict=True)
