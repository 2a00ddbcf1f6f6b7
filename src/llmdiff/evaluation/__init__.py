"""Measuring how well a picture shows what its prompt asks for."""
