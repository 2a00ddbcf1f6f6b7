"""The score report against block states computed the plain way, and the page that shows it."""

import json
import re

import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from llmdiff.controller import LLMController
from llmdiff.errors import ConfigError
from llmdiff.language.closed_llm import ClosedLLM, ClosedLLMSettings
from llmdiff.language.rewording import Rewording
from llmdiff_lab.cli.main import app
from llmdiff_lab.inspection.score_plots import save_scores, score_page
from llmdiff_lab.inspection.scores import inspect_scores

PROMPT = "a red apple <b>& friends</b> $5"


@pytest.fixture
def controller(tiny_llm, sd_pipe):
    controller = LLMController.create(tiny_llm, sd_pipe)
    with torch.no_grad():
        controller.adapter.context.gamma.uniform_(-1, 1)
        controller.adapter.context.kappa.uniform_(-1, 1)
        next(iter(controller.adapter.branches.values())).b2.fill_(0.5)
    return controller


def test_every_figure_follows_from_the_block_states(controller):
    llm, context = controller.llm, controller.adapter.context
    report = inspect_scores(llm, PROMPT, adapter=controller.adapter)
    states = llm.block_updates([PROMPT], lone=context.lone)
    for rows, expected in (
        (report.context_norm, states.context),
        (report.lone_norm, states.lone),
        (report.score_norm, states.scores),
    ):
        assert torch.allclose(torch.tensor(rows), expected[:, 0].norm(dim=-1), atol=1e-4)
    cosine = F.cosine_similarity(states.context[:, 0], states.lone[:, 0], dim=-1)
    assert torch.allclose(torch.tensor(report.cosine), cosine, atol=1e-4)
    final = context.sum(states)[0]
    assert torch.allclose(torch.tensor(report.encoding_norm), final.norm(dim=-1), atol=1e-4)
    assert torch.allclose(torch.tensor(report.running[-1]), torch.ones(len(final)), atol=1e-5)
    last = (states.x0 + states.context.sum(0))[0].norm(dim=-1)
    assert torch.allclose(torch.tensor(report.state_norm[-1]), last, atol=1e-3)
    assert report.gains.gamma == pytest.approx(context.gamma.tolist())
    first = next(iter(controller.adapter.branches))
    assert report.gates[first] == pytest.approx((1.0, 2.718281828**0.5))


def test_what_blocks_add_is_what_is_missing_from_x0(controller):
    llm, context = controller.llm, controller.adapter.context
    states = llm.block_updates([PROMPT], lone=context.lone)
    added = sum(context.contribution(i, states.context[i], states.lone[i]) for i in range(context.num_blocks))
    expected = states.x0 / context.x0_scale + added
    assert torch.allclose(context.sum(states), expected, atol=1e-5)
    assert torch.allclose(context.encode(llm, [PROMPT]).states, expected, atol=1e-4)


def test_an_llm_alone_has_gains_of_one_and_no_gates(tiny_llm):
    report = inspect_scores(tiny_llm, "a cat", lone="token")
    assert set(report.gains.gamma) == {1.0}
    assert report.gains.kappa is None
    assert report.gates is None
    assert len(report.tokens) == len(report.x0_norm)
    assert all(value == 0 for row in report.score_norm for value in row[:1])  # BOS


def test_gains_are_given_as_they_stand_before_the_updates(controller):
    context = controller.adapter.context
    with torch.no_grad():
        context.score_scale.uniform_(1, 3)
        context.lone_scale.uniform_(1, 3)
    gains = inspect_scores(controller.llm, PROMPT, adapter=controller.adapter).gains
    assert gains.g == pytest.approx((context.gamma / context.score_scale).tolist())
    assert gains.k == pytest.approx((context.kappa / context.lone_scale).tolist())
    assert gains.h == pytest.approx(context.h.tolist())


def test_the_sink_is_held_against_the_other_tokens_without_and_with_subtraction(controller):
    report = inspect_scores(controller.llm, "a red apple", adapter=controller.adapter)
    norms = torch.tensor(report.context_norm)
    assert report.sink["context_norm"] == norms.max()
    token = report.sink["token"]
    others = [i for i in range(len(report.tokens)) if i not in (0, token)]
    for name, rows in (("without", norms), ("with", torch.tensor(report.score_norm))):
        for block, ratio in enumerate(report.sink[name]):
            expected = float(rows[block, token]) / float(rows[block, others].median())
            assert ratio == pytest.approx(expected, rel=1e-4)
    assert report.to_json()["sink"] == report.sink


def test_an_answer_is_looked_at_with_the_prompt_before_it(controller):
    class Answers(ClosedLLM):
        def answers(self, prompt):
            return ("a dog",)

    closed = Answers(ClosedLLMSettings(url="http://127.0.0.1:9/v1", model="m"))
    alone = inspect_scores(controller.llm, "a dog", adapter=controller.adapter)
    report = inspect_scores(
        controller.llm, "a red apple", adapter=controller.adapter, rewording=Rewording(closed=closed)
    )
    assert (report.prompt, report.text, report.before) == ("a red apple", "a dog", "a red apple")
    assert report.tokens == alone.tokens
    assert report.score_norm[1][1:] != alone.score_norm[1][1:]


def test_an_adapter_without_blocks_is_refused(tiny_llm, sd_pipe):
    controller = LLMController.create(tiny_llm, sd_pipe)
    controller.adapter.context = None
    with pytest.raises(ConfigError, match="no scores"):
        inspect_scores(tiny_llm, "a cat", adapter=controller.adapter)


def test_the_files_are_whole_and_the_page_stands_alone(controller, tmp_path):
    report = inspect_scores(controller.llm, PROMPT, adapter=controller.adapter)
    paths = save_scores(report, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["scores.json", "scores.png", "scores.svg", "scores.html"]
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(
        p.name for p in paths
    )
    saved = json.loads(paths[0].read_text())
    assert saved["prompt"] == PROMPT
    assert saved["score_norm"][0] == pytest.approx(list(report.score_norm[0]))
    page = paths[3].read_text()
    assert "<b>&" not in page
    assert "&lt;b&gt;&amp; friends" in page
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", page)


def test_the_same_report_gives_the_same_page(controller, tmp_path):
    report = inspect_scores(controller.llm, "a cat", adapter=controller.adapter)
    for name in ("one", "two"):
        save_scores(report, tmp_path / name)
    assert (tmp_path / "one" / "scores.html").read_bytes() == (tmp_path / "two" / "scores.html").read_bytes()
    assert "a cat" in score_page(report, "<svg></svg>")


def test_the_command_looks_at_a_saved_adapter(controller, sd_pipe, tmp_path):
    controller.llm.model.save_pretrained(tmp_path / "llm")
    controller.llm.tokenizer.save_pretrained(tmp_path / "llm")
    runner = CliRunner()
    arguments = ["inspect", "scores", "a cat", "--llm", str(tmp_path / "llm"), "--out", str(tmp_path / "out")]
    for lone in ("token", "token+bos"):
        result = runner.invoke(app, [*arguments, "--lone", lone, "--device", "cpu"])
        assert result.exit_code == 0, result.output
        assert json.loads((tmp_path / "out" / "scores.json").read_text())["lone"] == lone
    blank = runner.invoke(app, ["inspect", "scores", " ", "--out", str(tmp_path / "none")])
    assert blank.exit_code == 1
    assert "error: prompt is blank" in blank.output
    assert not (tmp_path / "none").exists()
