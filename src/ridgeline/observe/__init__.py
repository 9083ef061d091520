"""Metrics and, later, energy, cost and traces: it listens, it never steers."""
