"""Pages and findings of what was seen inside LLMs: figures as recorded, verdicts by their intervals."""

import json
from pathlib import Path
from typing import Any

from .test_generated import inside, results


def gap(mean: float, reach: float = 0.05) -> dict[str, float]:
    return {"mean": mean, "low": mean - reach, "high": mean + reach, "n": 100}


def share(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 50}


PROBES: dict[str, Any] = {
    "settings": {"llm": "x", "splits": ["seen", "synonyms", "pairs"]},
    "titles": {"paper": "the paper's", "last layer": "the last"},
    "reference": "last layer",
    "table": {
        name: {split: {"objects": gap(0.5)} for split in ("seen", "synonyms", "pairs")}
        for name in ("paper", "last layer")
    },
    "differences": {
        "paper": {
            "seen": {"objects": gap(0.2)},
            "synonyms": {"objects": gap(-0.2)},
            "pairs": {"objects": gap(0.01)},
        }
    },
}
POINTING = {"scenes": 10, "chance": 0.15, "both": share(0.6), "new": share(0.2), "pretrained": {"n": 0}}
BLOCK = {
    "distance": gap(0.5),
    "cosine": gap(0.5),
    "final_r2": 0.5,
    "own_token": gap(0.5),
    "next_token": gap(0.25),
}
DENOISING = {
    "models": [
        {
            "model": "some/llm",
            "kind": "decoder-only",
            "blocks": [BLOCK] * 5,
            "monotone": 0.25,
            "steps_back": 1.5,
        }
    ]
}
LLMS = {
    "system": "guided",
    "base": {},
    "llms": {
        "small": {"parameters": 135e6, "held_out": share(0.4), "differences_to_smallest": None},
        "a/large": {
            "parameters": 268e6,
            "held_out": share(0.5),
            "differences_to_smallest": {"held_out": gap(0.1)},
        },
    },
}


def test_probes_say_where_scores_hold_more_and_where_less_than_the_last_layer() -> None:
    (line,) = inside.inside_findings(PROBES)
    assert "more: seen (+20 points); less: synonyms (-20 points); not decided: pairs (+1 points)" in line
    assert "from paper, against last layer" in line


def test_pointing_is_held_against_chance() -> None:
    both, new = inside.inside_findings(POINTING)
    assert "60.0 [50.0, 70.0] % of 50 objects" in both
    assert both.endswith("chance 15 %: above chance")
    assert new.endswith("not above chance")


def test_denoising_and_llms_are_said_in_numbers() -> None:
    (line,) = inside.inside_findings(DENOISING)
    assert "llm (decoder-only): 25.0 % of tokens" in line
    assert "1.5 of 4 blocks lead away" in line
    small, large = inside.inside_findings(LLMS)
    assert small == "- small (135 M parameters): 40.0 [30.0, 50.0] % of held-out prompts exact"
    assert "against the smallest LLM +10.0 points, better" in large


def test_pages_have_tables_and_the_plot_that_lies_beside_them(tmp_path: Path) -> None:
    for name, record in {"probes": PROBES, "pointing": POINTING, "denoising": DENOISING}.items():
        (tmp_path / f"{name}.json").write_text(
            json.dumps(record | {"command": "python x", "date": "2026-01-01"})
        )
    (tmp_path / "probes.png").write_bytes(b"")
    page = results.result_page(tmp_path / "probes.json")
    assert "![probes](../results/probes.png)" in page
    assert "| paper | **50** [45, 55] |" in page
    assert "```text\npython x\n```" in page
    assert "| both | 60.0 [50.0, 70.0] | 50 |" in results.result_page(tmp_path / "pointing.json")
    page = results.result_page(tmp_path / "denoising.json")
    assert "![" not in page
    assert "| llm | decoder-only | 4 | 0.50 |" in page
    found = results.findings(tmp_path)
    assert found.count("](../generated/results-") == 3
    assert "above chance" in found


def test_a_proxys_gain_is_said_and_its_words_are_no_markup(tmp_path: Path) -> None:
    row = {
        "accuracy": dict.fromkeys(("base", "llm", "llm reworded", "llm told"), gap(0.3)),
        "answered": 0.9,
        "gain_told": gap(0.4),
    }
    record = {
        "reword_model": "smollm2-135m",
        "splits": {"synonyms": row | {"gain": gap(0.1)}, "indirect": row | {"gain": gap(0.0)}},
        "examples": [{"prompt": "a [dog]", "answer": "<b>|x|</b> `y`"}, {"prompt": "a", "answer": ""}],
    }
    synonyms, indirect = inside.inside_findings(record)
    assert "90 % of the prompts and brings +10.0 points over the LLM alone, a gain; an answer" in synonyms
    assert synonyms.endswith("brings +40.0 [+35.0, +45.0]")
    assert "over the LLM alone, not decided; an answer" in indirect
    path = tmp_path / "proxy.json"
    path.write_text(json.dumps(record))
    page = results.result_page(path)
    assert r"| a \[dog\] | \<b\>\|x\|\</b\> \`y\` |" in page
    assert "| a | (none) |" in page
    assert "| synonyms | 30 [25, 35] |" in page


def test_a_benchmark_says_where_ours_is_better_and_where_worse(tmp_path: Path) -> None:
    def system(**more: Any) -> dict[str, Any]:
        return {
            "title": "the last states",
            "group": "ours",
            "held_out": share(0.4),
            "overall": share(0.5),
            "splits": {"seen": share(0.9)},
            "parts": {"things": share(0.7)},
            "failed_pictures": 0,
            "cost": {
                "trained_parameters": 9,
                "seconds_per_step": 0.5,
                "seconds_per_image": 1.0,
                "peak_memory_gb": 2,
            },
            **more,
        }

    above = {"held_out": gap(0.2), "overall": gap(0.0), "seen": gap(-0.1)}
    record = {
        "systems": {"guided": system(), "last-hidden": system(ours_above=above, failed_pictures=2)},
        "ours": "guided",
        "suite": {"splits": {"seen": "as trained"}, "prompts": 6},
        "settings": {"seeds": 3},
        "treatment": ["all alike"],
        "left_out": {},
        "hardware": {"machine": "x86_64", "cpus": 2, "threads": 2},
        "command": "llmdiff-lab benchmark --out figures",
        "date": "2026-01-02T03:04:05",
    }
    (finding,) = inside.inside_findings(record)
    assert finding == (
        "- guided against last-hidden (the last states): better: held out (+20 points); "
        "worse: seen (-10 points); not decided: overall (+0 points)"
    )
    path = tmp_path / "benchmark.json"
    path.write_text(json.dumps(record))
    page = results.result_page(path)
    assert page.startswith("# Ways to condition, trained alike\n\n![Held-out accuracy")
    assert (
        "Of 2 systems, `guided` (the last states) draws most held-out prompts exactly right: 40.0 [30" in page
    )
    assert "`guided` is ours. Every trained system saw" in page
    assert "llmdiff-lab benchmark --out figures" in page
    assert "| last-hidden | +20.0 [+15.0, +25.0] |" in page
    assert "2 pictures of last-hidden could not be drawn and count as wrong." in page
    assert "of guided could not be drawn" not in page
    assert "Hardware: 2 cores, x86_64." in page
    record["systems"] |= {
        "base": system(held_out=share(0.2)),
        "ella": system(held_out=share(0.6), ours_above=above),
    }
    opening = inside.opening(record)[2]
    assert "; the base as it is draws 20.0 [10" in opening
    assert "Ours, `guided`, draws 40.0 [30.0, 50.0] %, against `ella` +20.0 [+15.0, +25.0] points" in opening
    record["systems"]["base"] = system(held_out=share(0.7), ours_above=above)
    opening = inside.opening(record)[2]
    assert "`base` (" in opening
    assert "the base as it is" not in opening


def test_other_records_are_none_of_these() -> None:
    assert inside.kind_of({"rows": []}) is None
    assert inside.kind_of([1]) is None
    assert inside.inside_findings({"rows": []}) == []
