"""Inspect an LLM's blocks: probes, scores, attention maps."""
