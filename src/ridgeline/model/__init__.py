"""The one decoder, and model families as data."""
