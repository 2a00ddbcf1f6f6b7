"""Several processes fill one store together."""

import os
import socket
from pathlib import Path

import torch

from llmdiff.language.cache import EncodingStore
from llmdiff.training.prepare import fill_shown
from llmdiff.training.processes import launched_process
from llmdiff.types import TextEncoding

CAPTIONS = [f"{count} cats" for count in range(1100)]


def read(captions: list[str]) -> TextEncoding:
    states = torch.tensor([[[float(caption.split()[0])]] for caption in captions])
    return TextEncoding(states=states, token_mask=torch.ones(len(captions), 1, dtype=torch.bool))


def fill_in_process(rank: int, folder: str, port: int) -> None:
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= here | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    process = launched_process("cpu")
    store = EncodingStore(Path(folder) / "store", read)
    made = fill_shown(store, CAPTIONS, "reading", process)
    Path(folder, f"{rank}.txt").write_text(str(made))
    # The store is full when a process goes on.
    assert store.batch(CAPTIONS).states.flatten().tolist() == list(range(1100))
    torch.distributed.destroy_process_group()


def test_two_processes_each_read_half_of_the_captions(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(fill_in_process, (str(tmp_path), port), nprocs=2)
    assert [int((tmp_path / f"{rank}.txt").read_text()) for rank in range(2)] == [550, 550]
    store = EncodingStore(tmp_path / "store", read)
    assert sum(len(file.keys()) for file in store.store._files.values()) == len(store.store) == 1100
