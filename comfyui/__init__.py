"""ComfyUI nodes that put a decoder-only LLM in control of Stable Diffusion models."""

from typing import Any


async def comfy_entrypoint() -> Any:
    """Return the extension with all nodes; ComfyUI calls this once when it starts."""
    from .nodes import LLMDiffExtension

    return LLMDiffExtension()
