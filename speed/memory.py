"""The most memory that drawing, encoding and training take, each in a process of its own: python speed/memory.py

The peak is that of the whole process (the kernel's VmHWM), libraries and weights included; on a GPU that of its
allocator stands beside it. The other side draws with the base pipeline alone, or runs the LLM alone; training has none.
Drawing from a saved encoding, with no LLM and no text encoder in memory, stands beside drawing with the LLM.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import PROMPTS, Record, finish, parser, record, resident_mib

_CONFIGS = Path(__file__).parents[1] / "configs"


def draw(options: Any, *, attached: bool) -> None:
    import torch
    from tiny_models import llm as load_llm

    from llmdiff import LLMController
    from llmdiff.adapter.base_pipeline import load_base_pipeline

    pipe = load_base_pipeline("openmoji", dtype=torch.float32).to(options.device)
    if attached and options.quick:
        LLMController.create(load_llm(options), pipe).attach(pipe)
    elif attached:
        LLMController.from_pretrained("openmoji", llm=load_llm(options), device=options.device).attach(
            pipe, 1.0
        )
    pipe(PROMPTS[0], num_inference_steps=2 if options.quick else 20)


def save(options: Any) -> None:
    """Write the adapter and the encodings that `draw_saved` draws from."""
    import torch
    from tiny_models import llm as load_llm

    from llmdiff import LLMController
    from llmdiff.adapter.base_pipeline import load_base_pipeline

    llm = load_llm(options)
    if options.quick:
        controller = LLMController.create(llm, load_base_pipeline("openmoji", dtype=torch.float32))
    else:
        controller = LLMController.from_pretrained("openmoji", llm=llm, device=options.device)
    controller.save_pretrained(options.folder / "adapter")
    controller.encode([PROMPTS[0], ""]).save(options.folder / "encodings")


def draw_saved(options: Any) -> None:
    from llmdiff import LLMController
    from llmdiff.language.saved_encodings import SavedEncodings

    saved = SavedEncodings.load(options.folder / "encodings")
    controller = LLMController.from_pretrained(options.folder / "adapter", llm=saved, device=options.device)
    pipe = controller.load_pipeline("openmoji", device=options.device, text_encoders=False)
    controller.attach(pipe, 1.0)
    pipe(PROMPTS[0], num_inference_steps=2 if options.quick else 20)


def encode(options: Any, *, ours: bool) -> None:
    from encoding import plain_forward
    from tiny_models import llm as load_llm

    from llmdiff.language import ContextEncoding

    llm = load_llm(options)
    if ours:
        ContextEncoding(llm.num_blocks, llm.hidden_size).to(llm.device).encode(llm, list(PROMPTS))
    else:
        plain_forward(llm, list(PROMPTS))()


def train(options: Any) -> None:
    from training_step import tiny_llm_folder

    from llmdiff.training.config import load_config
    from llmdiff.training.trainer import train_adapter

    with tempfile.TemporaryDirectory() as folder:
        steps, batch, scenes = (2, 2, 8) if options.quick else (20, 48, 200)
        changes = {
            "out": f"{folder}/run",
            "store": f"{folder}/store",
            "models.llm": tiny_llm_folder(Path(folder)) if options.quick else options.llm,
            "training.steps": steps,
            "training.batch_size": batch,
            "training.warm_start_steps": 0,
            "training.lr_warmup_steps": 1,
            "training.gains": "learned",
            "training.gain_steps": 0,
            "training.score_groups": 2,
            "data.scenes": scenes,
            "watch.validation_samples": 0,
            "watch.prompts": "[]",
            "watch.trackers": "[]",
        }
        if options.device == "cpu":
            changes["device"] = "cpu"
        train_adapter(
            load_config(_CONFIGS / "openmoji-smollm2.yaml", [f"{k}={v}" for k, v in changes.items()])
        )


ACTS = {
    "draw": lambda options: draw(options, attached=True),
    "save": save,
    "draw from a saved encoding": draw_saved,
    "draw with the base alone": lambda options: draw(options, attached=False),
    "encode": lambda options: encode(options, ours=True),
    "run the LLM alone": lambda options: encode(options, ours=False),
    "train": train,
}


def peak(act: str, options: Any) -> dict[str, float]:
    """Return the peak memory of a function in a separate process."""
    passed = [sys.executable, __file__, "--act", act, "--device", options.device, "--llm", options.llm]
    passed += ["--folder", str(options.folder)]
    done = subprocess.run(
        [*passed, *(["--quick"] if options.quick else [])], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"error: {act}: {done.stderr.strip()[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    options_of = parser(__doc__)
    options_of.add_argument("--llm", default="smollm2-135m")
    options_of.add_argument("--act", choices=ACTS, help="do this one here and print its peak")
    options_of.add_argument(
        "--folder", type=Path, help="where acts leave files for the next ones [a temporary one]"
    )
    options = options_of.parse_args(arguments)
    if options.act is not None:
        ACTS[options.act](options)
        import torch

        found = {"process_mib": resident_mib("VmHWM")}
        if torch.cuda.is_available():
            found["gpu_mib"] = torch.cuda.max_memory_allocated() / 2**20
        print(json.dumps(found))
        return []
    with tempfile.TemporaryDirectory() as folder:
        options.folder = options.folder or Path(folder)
        peaks = {act: peak(act, options) for act in ACTS}
    others = {
        "draw": "draw with the base alone",
        "draw from a saved encoding": "draw",
        "encode": "run the LLM alone",
        "train": None,
    }
    records = [
        record(
            f"peak memory: {act}",
            ours=peaks[act]["process_mib"],
            other=None if other is None else peaks[other]["process_mib"],
            unit="MiB",
            device=options.device,
            **{key: value for key, value in peaks[act].items() if key == "gpu_mib"},
        )
        for act, other in others.items()
    ]
    return finish(records, options)


if __name__ == "__main__":
    main()
