"""Upload an adapter to the Hub: the saved files and a model card."""

import tempfile
from typing import Any

import torch

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.card import adapter_card, is_local
from llmdiff.adapter.storage import CARD_NAME
from llmdiff.errors import ConfigError, OutputError, first_line


def upload_adapter(
    adapter: LLMDiffAdapter,
    repo_id: str,
    *,
    private: bool = False,
    license: str | None = None,
    dtype: torch.dtype | None = None,
    llm_id: str | None = None,
    base_model_id: str | None = None,
) -> str:
    """Upload an adapter with its card, creating the repository if needed; return the commit's address.

    A card that is already in the repository is kept, as its author may have edited it. `llm_id` and `base_model_id`
    replace local names in the uploaded config; "" omits the name.

    Raises:
        ConfigError: a name is a local path.
        OutputError: the upload failed: no network, no permission, or an invalid name.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    config: Any = adapter.config
    here = {"llm_id": config.llm_id, "base_model_id": config.base_model_id}
    named = {"llm_id": llm_id, "base_model_id": base_model_id}
    public = {name: here[name] if value is None else value for name, value in named.items()}
    for name, value in public.items():
        if is_local(value):
            raise ConfigError(
                f"{name} {value!r} is a place on this machine, expected the id that others load it by: pass "
                f'{name}="owner/name" to push_to_hub, or {name}="" if it is nowhere public'
            )
    with tempfile.TemporaryDirectory() as folder:
        adapter.register_to_config(**public)
        try:
            card = adapter_card(adapter, repo_id=repo_id, license=license)
            adapter.save_pretrained(folder, dtype=dtype, card=card)
        finally:
            adapter.register_to_config(**here)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            kept = [CARD_NAME] if api.file_exists(repo_id, CARD_NAME) else None
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message="LLMDiff adapter", ignore_patterns=kept
            )
        except Exception as error:  # the Hub client raises a dozen kinds, for network, names and rights
            raise OutputError(
                f"repo_id {repo_id!r} cannot be uploaded to ({first_line(error)}): check the name, the network "
                'and your rights ("hf auth login")'
            ) from error
    return str(commit.commit_url)
