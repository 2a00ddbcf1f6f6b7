"""The command `llmdiff`: one small module per group of verbs."""
