"""The image API's page for people, in a real browser."""

from typing import Any

import pytest

from llmdiff.drawing.models import Models
from llmdiff.serving.api import create_app
from llmdiff.serving.pipeline_drawer import PipelineDrawer
from llmdiff.serving.settings import ServeSettings
from tests.llmdiff.serving.conftest import serving

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1800)]


def test_the_api_explains_itself(models: Models, visit: Any, shoot: Any) -> None:
    from playwright.sync_api import expect

    app = create_app(lambda: PipelineDrawer.load(models), ServeSettings())
    with serving(app) as (url, _):
        page = visit(url, at="/docs")
        expect(page.get_by_role("heading", name="LLMDiff")).to_be_visible()
        for words in ("/v1/images/generations", "num_inference_steps", "guidance_scale", "curl"):
            expect(page.get_by_text(words).first).to_be_visible()
        shoot(page, "serve-docs")
        page.get_by_role("link", name="openapi.json").click()
        expect(page.get_by_text('"openapi"')).to_be_visible()
