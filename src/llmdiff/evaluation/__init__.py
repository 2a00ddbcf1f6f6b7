"""Measure how well pictures match their prompts."""
