"""Reads the arrays of an .npz file without trusting what their headers ask for."""

import math
import zipfile

import numpy as np


def read_npy(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of an .npz. NumPy's own reader reserves what the header asks for, whatever follows.

    Raises ValueError where the member is not what its header says, and what the archive raises where it is damaged.
    """
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name} is of version {version}")
        read_header = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read_header(file)
        data = file.read()
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{name} is not what its header says")
    return np.ndarray(shape, dtype, data, order="F" if is_fortran else "C")
