"""ComfyUI itself, where LLMDIFF_COMFYUI names a checkout of it; tests that need it are skipped elsewhere."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from comfy_sized import HOME, comfy_sized_sd, comfy_sized_sdxl


@pytest.fixture(scope="session")
def comfy() -> Any:
    """ComfyUI's modules, on the CPU."""
    if HOME is None:
        pytest.skip("LLMDIFF_COMFYUI names no checkout of ComfyUI")
    assert (Path(HOME) / "comfyui_version.py").is_file(), HOME
    sys.path.append(HOME)
    from comfy.cli_args import args

    args.cpu = True
    import comfy.sample
    import comfy.samplers
    import comfy.sd
    import folder_paths

    from comfyui import base, encoding, folders, model

    return SimpleNamespace(
        sample=comfy.sample,
        samplers=comfy.samplers,
        sd=comfy.sd,
        folder_paths=folder_paths,
        base=base,
        encoding=encoding,
        folders=folders,
        model=model,
    )


@pytest.fixture(params=["sd", "sdxl"])
def sized_pipe(request: pytest.FixtureRequest) -> Any:
    return {"sd": comfy_sized_sd, "sdxl": comfy_sized_sdxl}[request.param]()
