"""Pages of keys and values as numbers: which are free, who holds which, and which begin a prompt. No arrays."""
