"""Commands that train, and repeat what was trained."""
