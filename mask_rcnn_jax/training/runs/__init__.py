"""A run's folder: who may write there, what is recorded, how a run stops, is diagnosed and repeated."""
