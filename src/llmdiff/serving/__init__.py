"""LLMDiff for people: an HTTP API that draws, and the pages of a user study."""
