"""Forms of operations for GPU and TPU; `ops` itself and `ops/pooling` hold the plain ones and choose."""
