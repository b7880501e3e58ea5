"""Sources of datasets: the contract in `base.py`, one file a format."""
