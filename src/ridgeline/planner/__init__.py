"""Goals, traffic and chips to a plan. Nothing is here yet."""
