"""Tiny random models of the real classes, and readers made of them."""
