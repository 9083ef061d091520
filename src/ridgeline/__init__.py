"""Ridgeline: large language models at the limit of the chip, measured."""
