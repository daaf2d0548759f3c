"""Partial Backpropagation for JAX."""
