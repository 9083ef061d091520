"""Many machines. Nothing is here yet."""
