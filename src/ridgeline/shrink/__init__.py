"""A model file made smaller, and what that cost: `ridgeline quantize`."""
