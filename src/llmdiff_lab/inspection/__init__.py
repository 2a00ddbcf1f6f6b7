"""What an LLM's blocks hold and do: probes, scores, attention maps."""
