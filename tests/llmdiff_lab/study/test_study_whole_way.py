"""From an evaluation to people's verdict by commands: evaluate, study create, the server, study report."""

import json
import sqlite3
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import Result
from PIL import Image
from starlette.testclient import TestClient
from typer.testing import CliRunner

from llmdiff.cli.main import app
from llmdiff.drawing.pictures import read_metadata
from llmdiff.evaluation.report import evaluate_suite
from llmdiff.evaluation.suites.scenes import scene_prompts, scenes_suite
from llmdiff.world.checker import WorldChecker
from llmdiff.world.scenes import World
from llmdiff.world.splits import SPLITS
from llmdiff_lab.cli.main import app as laboratory
from llmdiff_lab.study.api import create_study_app
from tests.llmdiff.serving.conftest import save_models

WORLD = World(thing_count=20, styles=("flat", "line"))


def run(*arguments: object) -> Result:
    with warnings.catch_warnings():
        program = laboratory if arguments[0] == "study" else app
        result = CliRunner().invoke(program, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output
    return result


def flat(level: int) -> Any:
    """A system whose pictures tell its level and their seed."""

    def draw(prompts: list[str], seeds: list[int]) -> np.ndarray:
        return np.stack([np.full((8, 8, 3), (level, seed % 256, 0), dtype=np.uint8) for seed in seeds])

    return draw


def test_from_an_evaluation_to_a_report_on_the_command_line(
    make_sd: Callable[..., Any], make_llm: Callable[..., Any], tmp_path: Path
) -> None:
    adapter = save_models(tmp_path / "models", make_sd(), make_llm())
    WorldChecker(WORLD, channels=8).eval().save_pretrained(tmp_path / "checker")
    options = ("--prompts", 1, "--steps", 1, "--adapter", adapter, "--checker", tmp_path / "checker")
    run("evaluate", "--out", tmp_path / "figures", *options)
    kept = {name: tmp_path / "figures" / "drawn" / name for name in ("base", "llm")}
    suite = scene_prompts(1, 0, WORLD)
    for name, folder in kept.items():
        facts = [read_metadata(path) for path in sorted(folder.iterdir())]
        assert [one["prompt"] for one in facts] == [row.prompt for row in suite]
        assert [one["seed"] for one in facts] == [str(row.seeds(1, 0)[0]) for row in suite]
        assert {one["system"] for one in facts} == {name}

    sources = [part for name, folder in kept.items() for part in ("--system", f"{name}={folder}")]
    run("study", "create", "--out", tmp_path / "study", *sources, "--check-every", 3)
    drawn = {Image.open(path).tobytes(): name for name, folder in kept.items() for path in folder.iterdir()}
    assert len(drawn) == 2 * len(SPLITS)
    counted: Counter[tuple[str, str]] = Counter()
    server = create_study_app(tmp_path / "study")
    with TestClient(server) as http:
        rater = f"/api/raters/{http.post('/api/raters').json()['rater']}"
        total = http.get(rater).json()["total"]
        assert total == len(SPLITS) + 4  # one attention check for every three pairs, rounded up
        for position in range(total):
            pair = http.get(f"{rater}/pairs/{position}").json()
            # A picture in noise is none of those that were drawn.
            names = {
                side: drawn.get(
                    Image.open(tmp_path / "study" / "pictures" / pair[side].rpartition("/")[2]).tobytes()
                )
                for side in ("left", "right")
            }
            if None in names.values():
                intact = next(side for side, name in names.items() if name is not None)
                choices = dict.fromkeys(("alignment", "quality", "details"), intact)
            else:
                assert set(names.values()) == {"base", "llm"}
                llm = next(side for side, name in names.items() if name == "llm")
                choices = {"alignment": llm, "quality": "tie", "details": "left"}
                counted.update(
                    {("alignment", "llm"): 1, ("quality", "tie"): 1, ("details", names["left"]): 1}
                )
            assert http.put(f"{rater}/pairs/{position}", json={"choices": choices}).status_code == 200
    server.state.store.close()

    run("study", "report", tmp_path / "study", "--out", tmp_path / "report")
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert (report["raters"]["counted"], report["answers"]) == (1, 3 * len(SPLITS))
    for question, result in report["results"].items():
        (pair,) = result["pairs"]
        found = {pair["first"]: pair["first_wins"], pair["second"]: pair["second_wins"], "tie": pair["ties"]}
        assert found == {name: counted[question, name] for name in ("base", "llm", "tie")}
    assert sorted(row["prompt"] for row in report["prompts"]) == sorted(row.prompt for row in suite)


def test_pictures_of_an_evaluation_say_how_they_were_made(tmp_path: Path) -> None:
    rows = scene_prompts(2, 0, WORLD)
    systems = {"base": flat(10), "llm": flat(20)}
    evaluate_suite(systems, scenes_suite(rows), tmp_path, batch=5, settings={"steps": 9})
    for name, level in (("base", 10), ("llm", 20)):
        paths = sorted((tmp_path / "drawn" / name).iterdir())
        assert len(paths) == len(rows)
        for row, path in zip(rows, paths, strict=True):
            assert (np.asarray(Image.open(path)) == (level, row.seeds(1, 0)[0] % 256, 0)).all()
            said = read_metadata(path)
            assert (said["prompt"], said["seed"], said["tags"]) == (
                row.prompt,
                str(row.seeds(1, 0)[0]),
                row.split,
            )
            assert said["system"] == name


def test_a_study_keeps_nothing_of_how_the_pictures_were_made(tmp_path: Path) -> None:
    suite = scene_prompts(1, 0, WORLD)
    systems = {"base": flat(10), "llm": flat(20)}
    evaluate_suite(systems, scenes_suite(suite), tmp_path / "figures")
    kept = tmp_path / "figures" / "drawn"
    sources = [part for name in systems for part in ("--system", f"{name}={kept / name}")]
    run("study", "create", "--out", tmp_path / "study", *sources)
    for path in (tmp_path / "study" / "pictures").iterdir():
        assert read_metadata(path) == {}
    with sqlite3.connect(tmp_path / "study" / "study.sqlite") as connection:
        texts = {text for (text,) in connection.execute("SELECT text FROM prompts")}
    connection.close()
    assert texts == {row.prompt for row in suite}
