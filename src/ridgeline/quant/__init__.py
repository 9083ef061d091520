"""Weight formats: the bytes of each, its numpy definition, and (later) quantisation into it."""
