"""Forms of operations for GPU and TPU; the files one level up hold the plain ones and choose."""
