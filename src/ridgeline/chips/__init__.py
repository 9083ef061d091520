"""Implementations of the ops, one folder or file a chip; no chip knows another."""
