"""Proposers of tokens and their verification. Nothing is here yet."""
