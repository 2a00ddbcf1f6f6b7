"""Repeated prompts, from the encoding cache and encoded again: python speed/caching.py

From memory: the same cache asked again. From disk: a cache opened anew, as another process would, its key and index
computed; the files are in the system's page cache. At the end several processes fill one store with the same captions
at once, and every one has to read what a single process reads.
"""

import multiprocessing
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import PROMPTS, Aim, Record, finish, interleaved, parser, record
from tiny_models import llm as load_llm

from llmdiff.language import ContextEncoding
from llmdiff.language.cache import EncodingCache

_PROCESSES = 3


def captions() -> list[str]:
    """Return eight times the prompts, all different."""
    return [f"{prompt}, {number} of them" for number in range(8) for prompt in PROMPTS]


def _fill(work: tuple[Any, str]) -> list[torch.Tensor]:
    options, folder = work
    torch.set_num_threads(1)
    llm = load_llm(options)
    cache = EncodingCache(Path(folder), llm, ContextEncoding(llm.num_blocks, llm.hidden_size).to(llm.device))
    batch = cache.batch(list(PROMPTS))
    return [states[mask] for states, mask in zip(batch.states, batch.token_mask, strict=True)]


def concurrent(options: Any) -> float:
    """Return the relative difference between encodings read by several processes and by one."""
    with tempfile.TemporaryDirectory() as shared, tempfile.TemporaryDirectory() as alone:
        with multiprocessing.get_context("spawn").Pool(_PROCESSES) as pool:
            found = pool.map(_fill, [(options, shared)] * _PROCESSES)
        expected = _fill((options, alone))
    return max(
        float((ours - one).abs().max() / one.abs().max())
        for rows in found
        for ours, one in zip(rows, expected, strict=True)
    )


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    options_of = parser(__doc__)
    options_of.add_argument("--llm", default="smollm2-135m")
    options = options_of.parse_args(arguments)
    threads = torch.get_num_threads()
    llm = load_llm(options)
    context = ContextEncoding(llm.num_blocks, llm.hidden_size).to(llm.device)
    texts = captions()[:8] if options.quick else captions()
    batches = [texts[start : start + 8] for start in range(0, len(texts), 8)]
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as folder:
        kept = EncodingCache(Path(folder), llm, context)
        kept.fill(texts)

        def from_disk() -> None:
            opened = EncodingCache(Path(folder), llm, context)
            for batch in batches:
                opened.batch(batch)

        seconds = interleaved(
            {
                "again": lambda: [context.encode(llm, batch) for batch in batches],
                "memory": lambda: [kept.batch(batch) for batch in batches],
                "disk": from_disk,
            },
            repeats=options.repeats,
            device=options.device,
        )
    for where in ("memory", "disk"):
        records.append(
            record(
                f"{len(texts)} prompts in batches of 8 from the cache, {where}",
                ours=seconds[where] / len(texts),
                other=seconds["again"] / len(texts),
                ratio=seconds["again"] / seconds[where],
                unit="s per prompt",
                device=options.device,
                aim=Aim(at_most=False, value=50),
                llm=llm.id,
            )
        )
    apart = concurrent(options)
    torch.set_num_threads(threads)
    records.append(
        record(
            f"{_PROCESSES} processes fill one store at once: largest difference to one alone",
            ours=apart,
            other=None,
            unit="share of the largest number",
            device=options.device,
            # float16 keeps 11 bits; another batch's rounding is far below that.
            aim=Aim(of="ours", value=2e-3),
            llm=llm.id,
        )
    )
    return finish(records, options)


if __name__ == "__main__":
    main()
