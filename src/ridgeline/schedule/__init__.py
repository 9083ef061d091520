"""Which tokens run in the next step: queue, admission, pages, step size. Integers only."""
