"""Validate the numbers and settings that users give."""
