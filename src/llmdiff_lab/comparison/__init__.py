"""Train and evaluate rivals under equal conditions on the embedded default's scenes."""
