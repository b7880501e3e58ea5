"""Broken image files: each is an image of the size that its header says, or refused in one sentence."""

import io
import random
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from mask_rcnn_jax.data.augment.transforms import open_image
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.media.image_files import UNREADABLE, count_frames, displayed_size, opened_image
from tests.byte_mutants import mutant

MAX_PIXELS = 1_000_000  # a header with changed bits may ask for gigabytes
XMP = '<rdf:Description tiff:Orientation="8"/>'

# By format: what `Image.save` is told, and the mode of the image.
VARIANTS: dict[str, list[tuple[str, dict]]] = {
    "JPEG": [("RGB", {}), ("L", {}), ("CMYK", {"progressive": True}), ("RGB", {"xmp": XMP.encode()})],
    "MPO": [("RGB", {"save_all": True})],
    "PNG": [("RGB", {}), ("P", {}), ("1", {}), ("LA", {}), ("I;16", {}), ("RGBA", {}), ("RGB", {"save_all": True})],
    "WEBP": [("RGB", {}), ("RGBA", {"lossless": True}), ("RGB", {"save_all": True})],
    "BMP": [("RGB", {}), ("P", {}), ("1", {}), ("RGBA", {})],
    "TIFF": [
        *((mode, {}) for mode in ("RGB", "P", "1", "I;16", "F", "CMYK")),
        *(("RGB", {"compression": kind}) for kind in ("tiff_lzw", "jpeg", "packbits", "tiff_adobe_deflate")),
        ("RGB", {"save_all": True, "big_tiff": True}),
        ("RGB", {"tiffinfo": {0x0112: 6}}),
        ("RGB", {"tiffinfo": {700: XMP.encode()}}),
    ],
    "GIF": [("P", {}), ("RGB", {"save_all": True})],
    "PPM": [("RGB", {}), ("L", {}), ("1", {})],
    "JPEG2000": [("RGB", {}), ("L", {})],
}
if features.check("avif"):
    VARIANTS["AVIF"] = [("RGB", {})]


def originals(kind: str) -> list[bytes]:
    rng = np.random.default_rng(0)
    found = []
    for height, width in [(20, 30), (1, 1), (33, 7)]:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6
        for mode, options in VARIANTS[kind]:
            more: dict = {"append_images": [image.rotate(90).convert(mode)]} if "save_all" in options else {}
            if kind in ("JPEG", "PNG", "WEBP", "AVIF") and "xmp" not in options:
                more["exif"] = exif
            content = io.BytesIO()
            grey = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
            grey.save(content, kind, **options, **more)
            found.append(content.getvalue())
    return found


def with_checksums(png: bytes) -> bytes:
    """The chunks as they are under right checksums, so that what is in them is read."""
    fixed, at = bytearray(png[:8]), 8
    while at + 12 <= len(png):
        length = min(int.from_bytes(png[at : at + 4], "big"), len(png) - at - 12)
        body = png[at + 4 : at + 8 + length]
        fixed += png[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += length + 12
    return bytes(fixed)


def read(content: bytes) -> str | None:
    """Why the image is refused; None where it is read."""
    size = None
    try:
        with opened_image(content) as image:
            size = displayed_size(image)
        with opened_image(content) as image:
            assert count_frames(image) >= 1
    except UNREADABLE:
        pass
    try:
        image = open_image("fuzzed", MAX_PIXELS, opener=lambda: io.BytesIO(content))
    except UserError as error:
        message = str(error)
        assert len(message) < 500
        assert "\n" not in message
        return message
    assert (image.mode, image.width * image.height <= MAX_PIXELS) == ("RGB", True)
    assert np.asarray(image).shape == (image.height, image.width, 3)
    assert size == (image.height, image.width)
    return None


def fuzz(kind: str, count: int, seed: int) -> None:
    sources, rng = originals(kind), random.Random(seed)
    assert all(read(content) is None for content in sources)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = 0
    for _ in range(count):
        content = mutant(sources, rng)
        if kind == "PNG" and rng.random() < 0.7:
            content = with_checksums(content)
        kept += read(content) is None
    assert 0 < kept < count
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1 << 20  # KiB


@pytest.mark.filterwarnings("ignore")  # Pillow's of what it reads all the same
@pytest.mark.parametrize("kind", VARIANTS)
def test_mutants_are_read_or_refused(kind):
    fuzz(kind, 200, seed=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", VARIANTS)
def test_many_mutants_are_read_or_refused(kind):
    fuzz(kind, 10_000, seed=1)
