"""Guesses at what a request will go on with, and how many of them are worth running."""
