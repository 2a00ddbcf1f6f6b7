"""A stage of several processes leaves the same files as one of a single process."""

import time
from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTextModel

from llmdiff.language.whole_weights import load_whole
from llmdiff_lab.world_build.stages import save_model


def save_in_process(rank: int, folder: str) -> None:
    meeting = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    config = CLIPTextConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    time.sleep(rank)  # the second process comes last
    save_model(CLIPTextModel(config), Path(folder) / "model")
    load_whole(CLIPTextModel, Path(folder) / "model", what="the saved model")
    torch.distributed.destroy_process_group()


def test_two_processes_leave_a_whole_model(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(save_in_process, (str(tmp_path),), nprocs=2)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors"}
