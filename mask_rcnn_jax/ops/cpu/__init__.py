"""Forms of operations that are fast on CPU; the files one level up hold the plain ones and choose."""
