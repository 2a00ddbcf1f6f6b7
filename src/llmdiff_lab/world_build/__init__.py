"""Build the embedded default from nothing."""
