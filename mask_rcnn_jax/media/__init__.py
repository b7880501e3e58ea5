"""Images and videos on disk, and how a person names them; no annotations."""
