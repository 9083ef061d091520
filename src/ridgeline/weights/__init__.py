"""Model files on disk -> named host arrays. Knows nothing of chips or decoders."""
