"""From records to batches of fixed shape."""
