"""Reports of a run for people: metrics, curves, profiles."""
