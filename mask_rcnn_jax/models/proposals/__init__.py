"""Sources of candidate boxes: the contract in `base.py`, one file a member."""
