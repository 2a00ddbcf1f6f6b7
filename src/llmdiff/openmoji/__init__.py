"""The embedded default: a tiny Stable Diffusion of emoji scenes, its data, its build and its weights."""
