"""Forms of operations that are fast on CPU; `ops` itself and `ops/pooling` hold the plain ones and choose."""
