"""Settings objects: the same as their fields as keyword arguments, checked, and shown in signatures."""

import inspect
import math
from typing import Any

import pytest

from llmdiff import AdapterSettings, Control, LLMController, LLMDiffAdapter
from llmdiff.adapter import attach
from llmdiff.adapter.attach import control_of
from llmdiff.errors import ConfigError
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.settings import EncodingSettings

CHOICE = {
    "encoding": "paper", "lone": "token", "template": "Picture: {prompt}", "max_length": 9, "clip": math.inf,
    "scale": 0.5, "refiner_layers": 1, "refiner_width": 32, "routing": 2,
    "routing_form": "softmax",
}  # fmt: skip


def test_an_object_and_its_fields_make_the_same_adapter(sd_pipe: Any, tiny_llm: Any) -> None:
    assert set(CHOICE) == set(AdapterSettings.model_fields)
    made = [
        LLMController.create(tiny_llm, sd_pipe, AdapterSettings(**CHOICE)),
        LLMController.create(tiny_llm, sd_pipe, **CHOICE),
    ]
    for controller in made:
        config: Any = controller.adapter.config
        assert {name: config[name] for name in CHOICE} == CHOICE
        assert controller.adapter.context.settings.max_length == 9


def test_a_control_and_its_fields_attach_alike(sd_pipe: Any, tiny_llm: Any) -> None:
    controller = LLMController.create(tiny_llm, sd_pipe, scale=0.25)
    chosen = Control(scale=0.5, keep_base_text=True)
    for given, fields in ((chosen, {}), (0.5, {"keep_base_text": True}), (None, vars(chosen))):
        with controller.attached(sd_pipe, given, **fields):
            assert control_of(sd_pipe) == chosen
    with controller.attached(sd_pipe):
        assert control_of(sd_pipe) == Control(scale=0.25)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdapterSettings(clip=math.nan), "clip is nan: expected greater than 0"),
        (lambda: AdapterSettings(encoding="magic"), "encoding is 'magic': expected 'guided' or 'paper'"),
        (lambda: AdapterSettings(max_length=True), "max_length is True: expected a valid integer"),
        (lambda: AdapterSettings(max_lenght=5), "unknown key 'max_lenght'.*did you mean 'max_length'"),
        (lambda: AdapterSettings(template="no place"), "template"),
        (lambda: ContextEncoding(4, 32, encoding=None), "encoding is None"),
        (
            lambda: ContextEncoding(4, 32, EncodingSettings(), lone="token"),
            "lone: given together with EncodingSettings",
        ),
        (lambda: Control(scale=1.5), "scale is 1.5"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_both_forms_at_once_are_refused(sd_pipe: Any, tiny_llm: Any) -> None:
    with pytest.raises(ConfigError, match="clip: given together"):
        LLMController.create(tiny_llm, sd_pipe, AdapterSettings(), clip=2.0)


def test_signatures_show_every_field() -> None:
    for function, kind in (
        (LLMController.create, AdapterSettings),
        (LLMDiffAdapter.create, AdapterSettings),
        (LLMDiffAdapter.__init__, AdapterSettings),
        (ContextEncoding.__init__, EncodingSettings),
        (LLMController.attach, Control),
        (LLMController.attached, Control),
        (attach, Control),
    ):
        shown = inspect.signature(function).parameters
        for name, field in inspect.signature(kind).parameters.items():
            assert name in shown, (function, name)
            if function is not LLMDiffAdapter.__init__:  # files without refiner_layers have no refiner
                assert shown[name].default == field.default
