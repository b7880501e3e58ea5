"""Broken files for fuzzing, from whole ones and a seed."""

import random
import struct
from collections.abc import Sequence

EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF)


def mutant(sources: Sequence[bytes], rng: random.Random) -> bytes:
    """One of the `sources`, cut, spliced, with bits flipped or with extreme numbers, most often near its start."""
    data = bytearray(rng.choice(sources))
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(data)) if data else 0
        place = min(place, rng.choice((16, 64, len(data))))  # headers hold sizes and offsets
        kind = rng.randrange(7)
        if kind == 0:
            del data[place:]
        elif kind == 1:
            del data[place : place + rng.randint(1, 50)]
        elif kind == 2:
            data[place:place] = rng.randbytes(rng.randint(1, 50))
        elif kind == 3:
            data[place:place] = rng.choice(sources)[: rng.randint(1, 200)]
        elif kind == 4:
            width, order = rng.choice("BHIQ"), rng.choice("<>")
            bits = 8 * struct.calcsize(width)
            data[place : place + bits // 8] = struct.pack(order + width, rng.choice(EXTREMES) % (1 << bits))
        else:
            for _ in range(rng.randint(1, 8)):
                if data:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)
