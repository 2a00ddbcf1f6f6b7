"""What is released works without this repository: the wheel in a clean environment, in another folder."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.release, pytest.mark.timeout(3600)]

WEIGHTS = (
    "adapter/diffusion_pytorch_model.safetensors",
    "checker/model.safetensors",
    "pipeline/unet/diffusion_pytorch_model.safetensors",
    "pipeline/vae/diffusion_pytorch_model.safetensors",
    "pipeline/world.json",
    "siglip/model.safetensors",
    "LICENSE",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Wheel and source distribution, the wheel made from the source distribution."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)], check=True, timeout=1800)
    return {"wheel": next(out.glob("*.whl")), "sdist": next(out.glob("*.tar.gz"))}


def test_wheel_and_source_carry_the_embedded_default_and_nothing_that_is_not_theirs(
    built: dict[str, Path],
) -> None:
    wheel = zipfile.ZipFile(built["wheel"]).namelist()
    with tarfile.open(built["sdist"]) as archive:
        source = archive.getnames()
    for name in WEIGHTS:
        assert f"llmdiff/world/weights/{name}" in wheel
        assert any(member.endswith(f"src/llmdiff/world/weights/{name}") for member in source)
    assert "llmdiff/py.typed" in wheel
    assert not [name for name in wheel if not name.startswith(("llmdiff/", "llmdiff_adapter-"))]
    for part in ("tests/test_cli.py", "docs/conf.py", "configs/openmoji-smollm2.yaml", "CITATION.cff"):
        assert any(member.endswith(f"/{part}") for member in source)
    assert not [member for member in source if "/docs/_build" in member or "__pycache__" in member]


def test_the_installed_wheel_draws_from_another_folder(built: dict[str, Path], tmp_path: Path) -> None:
    """The environment is new, and holds the wheel alone; its dependencies are those of this one, read from there.

    So nothing is downloaded, and what is tested is the package: a file that it lacks, a name that only the source
    tree has.
    """
    folder = tmp_path / "env"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    site = next(folder.glob("lib/python*/site-packages"))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    install = [*pip, "install", "--no-deps", "--no-index", str(built["wheel"])]
    subprocess.run(install, env=environment, check=True, timeout=600)
    # Behind the environment's own packages, so that the editable llmdiff-adapter among them is not seen.
    dependencies = Path(distribution("torch").locate_file("."))
    (site / "dependencies.pth").write_text(f"{dependencies}\n")

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*words: str) -> str:
        done = subprocess.run(
            words, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=1800, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run(str(python), "-c", "import llmdiff; print(llmdiff.__file__)")
    assert where.startswith(str(folder))
    command = str(folder / "bin" / "llmdiff")
    assert "everything needed for drawing is installed" in run(command, "doctor")
    run(command, "generate", "a red apple", "--out", "apple.png", "--seed", "0")
    picture = Image.open(elsewhere / "apple.png")
    assert picture.size == (128, 128)
    # A picture of something: neither one colour nor noise around grey.
    low, high = picture.convert("L").getextrema()
    assert high - low > 60
