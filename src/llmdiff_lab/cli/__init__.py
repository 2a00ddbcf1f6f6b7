"""The command `llmdiff-lab`: one small module per group of verbs."""
