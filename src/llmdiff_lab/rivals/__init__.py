"""Other ways to condition a denoiser on a prompt: the systems that our method is compared with.

`rivals.yaml` lists them by name, `registry` makes them. Each is a `Conditioning`, the one interface that training,
drawing and saving use.
There are two kinds. A source of states is read by our own adapter; it has `id`, `hidden_size`, `num_blocks` (0 unless
its states are a sum over blocks) and `encode(prompts)`, and a `LearnedSource` also has trained weights. A `Connector`
replaces the adapter.
"""
