"""The loop: schedule, run, sample, accept; and the client through which everyone else holds it."""
