"""What imports what: downwards only, no circles, nothing heavy before it is needed, every extra on its own."""

import graphlib
import json
import subprocess
import sys
from pathlib import Path

import grimp
import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]

# Each takes longer to import than all of `llmdiff --help` may. (typer brings pydantic where it parses options.)
HEAVY = {"torch", "diffusers", "transformers", "numpy", "PIL", "huggingface_hub", "gradio", "fastapi"}
HEAVY |= {"matplotlib", "datasets", "rich", "safetensors", "accelerate", "httpx2", "yaml"}


def test_modules_import_downwards_only(capsys: pytest.CaptureFixture[str]) -> None:
    failed = lint_imports(config_filename=str(ROOT / "pyproject.toml"), cache_dir=None)
    assert not failed, capsys.readouterr().out


def test_no_two_modules_import_each_other_by_any_way() -> None:
    graph = grimp.build_graph("llmdiff", "llmdiff_lab", exclude_type_checking_imports=False, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    # Raises CycleError, which names the circle.
    order = list(graphlib.TopologicalSorter(imports).static_order())
    assert (
        order.index("llmdiff.language.llm")
        < order.index("llmdiff.controller")
        < order.index("llmdiff.cli.main")
    )


@pytest.mark.parametrize(
    "code",
    [
        "import llmdiff",
        "from llmdiff.cli.main import app; app(['--help'], standalone_mode=False)",
        "from llmdiff_lab.cli.main import app; app(['inspect', '--help'], standalone_mode=False)",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str) -> None:
    shown = f"{code}\nimport json, sys\nprint(); print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", shown], capture_output=True, text=True, timeout=120, check=True
    )
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert HEAVY.isdisjoint(loaded)
    # Far below what takes half a second to import, and above what python versions differ by.
    assert len(loaded) < (200 if code == "import llmdiff" else 450)


# Run in a process of its own, which forks once for every extra: the libraries are then imported only once.
EXTRAS = '''
import importlib, importlib.metadata, json, os, pkgutil, re, sys
from packaging.requirements import Requirement

OWN = "llmdiff-adapter"
# The modules that are for one verb; all others are for everybody.
PLACES = {
    "benchmark": "lab.comparison|lab.rivals.lora|lab.rivals.lavi_bridge",
    "ui": "serving.ui",
    "serve": "serving|lab.study",
    "inspect": "lab.inspection",
    "train": "training|lab.world_build",
}


def canonical(name):
    return re.sub("[-_.]+", "-", name).lower()


def needed(name, extras, seen):
    """The distributions that one asks for, with those that they ask for."""
    for line in importlib.metadata.requires(name) or []:
        asked = Requirement(line)
        if asked.marker and not any(asked.marker.evaluate({"extra": extra}) for extra in (extras or [""])):
            continue
        key = canonical(asked.name), frozenset(asked.extras)
        if key in seen:
            continue
        seen.add(key)
        try:
            needed(asked.name, asked.extras, seen)
        except importlib.metadata.PackageNotFoundError:
            pass  # not for this machine, or not installed
    return {name for name, _ in seen}


class Hiding:
    """A finder that finds what another one does, except hidden packages: they are as if not installed."""

    hidden = frozenset()

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self.hidden else self.finder.find_spec(name, path, target)

    def find_distributions(self, *context):
        return getattr(self.finder, "find_distributions", lambda *_: ())(*context)


def of_extra(module):
    inner = module.replace("llmdiff_", "llmdiff.", 1).partition(".")[2]
    return next((extra for extra, place in PLACES.items() if re.match(place, inner)), "")


tops = importlib.metadata.packages_distributions()
everything = needed(OWN, ["dev"], set())


def hide(extra):
    allowed = needed(OWN, [extra] if extra else [], set()) | {canonical(OWN)}
    Hiding.hidden = frozenset(
        top for top, owners in tops.items()
        if {canonical(owner) for owner in owners} <= everything - allowed
    )


hide("")
sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
import diffusers, torch, transformers  # once, for all

import llmdiff, llmdiff_lab
modules = [
    found.name
    for top in (llmdiff, llmdiff_lab)
    for found in pkgutil.walk_packages(top.__path__, f"{top.__name__}.")
    if not found.name.endswith("__main__")
]
for extra in ["", *PLACES]:
    if os.fork() == 0:
        hide(extra)
        for module in modules:
            if of_extra(module) in ("", extra) or (extra == "ui" and of_extra(module) == "serve"):
                try:
                    importlib.import_module(module)
                except Exception as error:
                    print(json.dumps([extra, module, repr(error)]), flush=True)
        os._exit(0)
    os.wait()
print(json.dumps(["hidden", sorted(Hiding.hidden & {"gradio", "fastapi", "matplotlib", "pytest"})]))
'''


@pytest.mark.slow
def test_every_extra_can_be_used_without_the_others() -> None:
    command = [sys.executable, "-c", EXTRAS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    *failures, hidden = map(json.loads, done.stdout.splitlines())
    assert hidden == ["hidden", ["fastapi", "gradio", "matplotlib", "pytest"]]
    assert failures == []
