"""Checks of the numbers and settings that users give."""
