"""Blinded user studies: create, serve, report."""
