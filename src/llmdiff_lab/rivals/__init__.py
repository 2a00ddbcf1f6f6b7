"""Other ways to condition a denoiser on a prompt: what the paper's method is measured against.

`registry` names them all; every one is a `Conditioning`, which training, drawing and saving use alike. Sources of
states for our own adapter have `id`, `hidden_size`, `num_blocks` (0: their states are no sum over blocks) and
`encode(prompts)`; a `LearnedSource` has trained weights besides. A `Connector` takes the adapter's place.
"""
