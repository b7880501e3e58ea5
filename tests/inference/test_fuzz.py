"""A thousand broken images: each is found in at its size, or refused with one sentence; none is lost."""

import io
import random
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from mask_rcnn_jax.inference import Predictor
from mask_rcnn_jax.media.image_files import displayed_size
from mask_rcnn_jax.media.inputs import find_images
from tests.inference.small import DATA, noise, small_model

COUNT = 1000
MAX_PIXELS = 4_000_000  # a header with bits flipped may ask for gigabytes
FORMATS = {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "tif": "TIFF", "bmp": "BMP", "webp": "WEBP"}


def originals() -> list[tuple[str, bytes]]:
    """Small images in each format, of several modes and with what formats offer."""
    found = []
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix, name in FORMATS.items():
        for height, width in [(20, 30), (1, 1), (33, 7)]:
            image = Image.fromarray(noise(height, width, seed=height))
            variants = [(image, {})]
            if suffix in ("png", "tif"):
                variants += [
                    (image.convert(mode), {})
                    for mode in ("P", "1", "LA", "I;16", "RGBA")
                    if (mode, suffix) != ("LA", "x")
                ]
            if suffix == "tif":
                variants += [(image, {"compression": "tiff_lzw"}), (image.convert("F"), {})]
            if suffix == "jpg":
                variants += [
                    (image.convert("CMYK"), {}),
                    (image, {"progressive": True, "exif": exif}),
                    (image.convert("L"), {}),
                ]
            if suffix in ("gif", "webp"):
                variants += [(image, {"save_all": True, "append_images": [image.rotate(90)]})]
            for variant, options in variants:
                content = io.BytesIO()
                variant.save(content, name, **options)
                found.append((suffix, content.getvalue()))
    return found


def mutated(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    kind = rng.randrange(7)
    if kind == 0:
        return bytes(data[: rng.randrange(len(data) + 1)])
    if kind == 1:  # in the header, where sizes and offsets are
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(min(len(data), 64))] = rng.randrange(256)
    elif kind == 2:
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 3:
        return data[: rng.randint(2, 16)] + rng.randbytes(rng.randint(0, 200))
    elif kind == 4:
        start = rng.randrange(len(data))
        del data[start : start + rng.randint(1, 50)]
    elif kind == 5:  # an extreme number
        place = rng.randrange(max(min(len(data), 128) - 4, 1))
        data[place : place + 4] = struct.pack(rng.choice("<>") + "I", rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 65536]))
    else:
        start = rng.randrange(len(data))
        data[start:start] = data[: rng.randint(1, 50)]
    return bytes(data)


@pytest.fixture(scope="module")
def mutants(tmp_path_factory) -> list[Path]:
    folder, rng = tmp_path_factory.mktemp("mutants"), random.Random(0)
    sources = originals()
    paths = []
    for i in range(COUNT):
        suffix, content = rng.choice(sources)
        paths.append(folder / f"{i:04}.{suffix}")
        paths[-1].write_bytes(mutated(content, rng) if i % 50 else content)
    return paths


@pytest.mark.filterwarnings("ignore")  # Pillow's of what it reads all the same
def test_each_image_is_found_in_or_refused(mutants, capfd) -> None:
    images, problems = find_images([str(mutants[0].parent)])
    assert not problems
    assert [image.path for image in images] == mutants
    model = small_model(type(DATA)(**{**vars(DATA), "max_pixels": MAX_PIXELS}))
    predictor = Predictor(model, batch_size=jax.device_count())
    refused = {}
    found = list(predictor.stream(mutants, lambda image, error: refused.setdefault(str(image), str(error))))
    kept = [str(path) for path in mutants if str(path) not in refused]
    assert [detections.path for detections in found] == kept
    assert 100 < len(found) < COUNT - 100
    for path, message in refused.items():
        assert path in message
        assert len(message.splitlines()) == 1, message
    for path, detections in zip(kept, found, strict=True):
        with Image.open(path) as image:
            assert (detections.height, detections.width) == displayed_size(image)
        assert 0 < detections.height * detections.width <= MAX_PIXELS
        assert np.isfinite(detections.boxes).all()
        assert (detections.boxes <= np.array([detections.width, detections.height] * 2)).all()
        assert all(rle["size"] == [detections.height, detections.width] for rle in detections.rles)
    assert "Traceback" not in capfd.readouterr().err
