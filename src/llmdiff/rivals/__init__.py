"""Other ways to turn a prompt into states for the same adapter: what the paper's method is measured against.

Each has `id`, `hidden_size`, `num_blocks` (0: its states are no sum over blocks) and `encode(prompts)`, which is
all that `attach` and the training ask of a source of states.
"""
