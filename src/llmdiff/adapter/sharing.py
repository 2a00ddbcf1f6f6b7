"""Sending an adapter to the Hub: the files that are saved, and a card."""

import tempfile

import torch

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.card import adapter_card
from llmdiff.adapter.storage import CARD_NAME
from llmdiff.errors import OutputError, first_line


def upload_adapter(
    adapter: LLMDiffAdapter,
    repo_id: str,
    *,
    private: bool = False,
    license: str | None = None,
    dtype: torch.dtype | None = None,
) -> str:
    """Upload an adapter with its card, creating the repository if needed; return the commit's address.

    A card that is in the repository already stays: its author may have written in it.

    Raises:
        OutputError: the Hub does not take it: no network, no rights, a name that is none.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        card = adapter_card(adapter, repo_id=repo_id, license=license)
        adapter.save_pretrained(folder, dtype=dtype, card=card)
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
