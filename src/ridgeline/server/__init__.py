"""OpenAI-compatible HTTP over an EngineClient. Knows nothing of pages, chips, or the engine's inside."""
