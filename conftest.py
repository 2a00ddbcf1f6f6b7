"""Every test runs offline: set before any library reads it. And the options of the tests."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--screenshots",
        metavar="FOLDER",
        help="with -m browser: keep the pictures of all pages there; drawn by the shipped models if they are there",
    )
