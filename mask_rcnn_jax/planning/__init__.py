"""Programs for TPUs and GPUs that are not there: compiled, and accounted for."""
