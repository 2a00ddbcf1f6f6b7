"""Rivals trained alike and measured alike, on the embedded default's scenes: one command, one report."""
