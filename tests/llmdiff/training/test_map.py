"""The map of a training run in CONTRIBUTING.md: a run calls these functions, in this order."""

import re
import sys
import threading
from pathlib import Path

from typer.testing import CliRunner

from llmdiff.cli.main import app
from llmdiff.training.muon import MuonAdamW

ROOT = Path(__file__).parents[3]


def test_a_run_passes_through_the_files_of_the_map_in_its_order(config, monkeypatch, tmp_path):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    stations = re.findall(r"^\d+\. `(\S+\.py)`, `([\w.]+)`:", text, re.MULTILINE)
    assert len(stations) > 10
    met: dict[tuple[str, str], None] = {}
    stepped = threading.Event()

    def note(frame, event, _):
        code = frame.f_code
        if event == "call" and not stepped.is_set() and code.co_filename.startswith(str(ROOT / "src")):
            place = Path(code.co_filename).relative_to(ROOT / "src" / "llmdiff")
            met.setdefault((place.as_posix(), code.co_qualname))

    def step(self):
        stepped.set()
        return real_step(self)

    real_step = MuonAdamW.step
    monkeypatch.setattr(MuonAdamW, "step", step)
    (tmp_path / "config.yaml").write_text(config().as_yaml())
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        done = CliRunner().invoke(app, ["train", str(tmp_path / "config.yaml")])
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert done.exit_code == 0
    assert stepped.is_set()
    assert [place for place in met if place in stations] == stations
