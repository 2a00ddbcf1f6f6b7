"""The recorded command is one that can be typed again."""

import shlex

import pytest

from llmdiff.environment import command_line


@pytest.mark.parametrize(
    ("argv", "typed"),
    [
        (["/somewhere/bin/llmdiff", "generate", "a red cat"], ["llmdiff", "generate", "a red cat"]),
        (["speed/proxy.py", "--prompts", "3"], ["python", "speed/proxy.py", "--prompts", "3"]),
        (["/home/me/llmdiff/speed/proxy.py"], ["python", "speed/proxy.py"]),
    ],
)
def test_the_command_can_be_typed_again(monkeypatch, argv, typed):
    monkeypatch.setattr("sys.argv", argv)
    assert shlex.split(command_line()) == typed
