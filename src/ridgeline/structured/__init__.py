"""Grammar to token mask: structured output. Nothing is here yet."""
