"""Files and folders: written whole or not at all, and what belongs to whom."""
