"""Adapters of strangers: whatever config.json and weights say, one line, and no memory for what is not there."""

import contextlib
import json
import math
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.manifest import MANIFEST_NAME, write_manifest
from llmdiff.adapter.saved_config import SavedConfig
from llmdiff.adapter.storage import CONFIG_NAME, WEIGHTS_NAME
from llmdiff.errors import ConfigError, CorruptWeightsError, LLMDiffError

hostile = pytest.mark.hostile("adapter config")
HUGE = 10**9


@pytest.fixture
def saved(make_sd: Any, tiny_llm: Any, make_adapter: Callable[..., LLMDiffAdapter], tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    make_adapter(make_sd(), tiny_llm, refiner_layers=2).save_pretrained(folder)
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / CONFIG_NAME).read_text()))


def write_config(folder: Path, text: str) -> None:
    (folder / CONFIG_NAME).write_text(text)
    write_manifest(folder, [CONFIG_NAME, WEIGHTS_NAME])


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS_NAME)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_NAME)
    write_manifest(folder, [CONFIG_NAME, WEIGHTS_NAME])


def test_every_argument_of_an_adapter_is_checked() -> None:
    import inspect

    names = set(inspect.signature(LLMDiffAdapter.__init__).parameters) - {"self"}
    assert set(SavedConfig.model_fields) == names


@hostile
@pytest.mark.parametrize("value", [[], ["a"], {}, 7, True, None, math.inf, HUGE], ids=repr)
@pytest.mark.parametrize("key", ["template", "llm_id", "clip", "max_length", "refiner_layers", "scale"])
def test_a_value_of_another_kind_is_refused_by_name(saved: Path, key: str, value: Any) -> None:
    right = {("template", "None"), ("clip", "7"), ("clip", "inf"), ("clip", str(HUGE)), ("max_length", "7")}
    if (key, str(value)) in right:
        pytest.skip("a value that it may have")
    write_config(saved, json.dumps(config_of(saved) | {key: value}))
    # More layers than there are weights for is a matter of both.
    with pytest.raises((ConfigError, CorruptWeightsError), match=f"{key} is|7 {key}") as caught:
        LLMDiffAdapter.from_pretrained(saved)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def _layers(count: int) -> Callable[[dict[str, Any]], Any]:
    def change(config: dict[str, Any]) -> None:
        row = next(iter(config["cross_attention"].values()))
        config["cross_attention"] = {f"layer.{number}": row for number in range(count)}

    return change


def _of_first_layer(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda config: next(iter(config["cross_attention"].values())).update(values)


@hostile
@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.update(refiner_layers=10**6),
        lambda config: config.update(refiner_layers=200),
        lambda config: config.update(num_blocks=10**9),
        lambda config: config.update(num_blocks=10_000),
        lambda config: config.update(refiner_width=20_000),
        lambda config: config.update(refiner_width=2**20),
        lambda config: config.update(hidden_size=2**20),
        lambda config: config.update(text_width=2**20),
        lambda config: config.update(pooled_width=2**20),
        _of_first_layer(query_dim=10**7),
        _of_first_layer(query_dim=2**20, inner_dim=2**20, out_dim=2**20),
        _layers(10**5),
        _layers(4000),
    ],
)
def test_what_is_not_in_the_weights_takes_no_memory(
    saved: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    config = config_of(saved)
    change(config)
    write_config(saved, json.dumps(config))
    size = (saved / CONFIG_NAME).stat().st_size + (saved / WEIGHTS_NAME).stat().st_size
    before = _resident_bytes()
    tracemalloc.start()
    try:
        with pytest.raises(LLMDiffError, match=CONFIG_NAME):
            LLMDiffAdapter.from_pretrained(saved)
        assert tracemalloc.get_traced_memory()[1] < 40 * 2**20 + 20 * size
    finally:
        tracemalloc.stop()
    assert _resident_bytes() - before < 500 * 2**20


def _resident_bytes() -> int:
    fields = Path("/proc/self/statm")
    return int(fields.read_text().split()[1]) * 4096 if fields.exists() else 0


@hostile
@pytest.mark.parametrize(
    "name",
    ["forward", "keys", "items", "", "training", "a/b", "\n", "é", "a" * 600, "x" + "." * 400, "_modules"],
)
def test_a_layer_that_cannot_have_its_name(saved: Path, name: str) -> None:
    config = config_of(saved)
    first, *_ = config["cross_attention"]
    config["cross_attention"][name] = config["cross_attention"].pop(first)
    write_config(saved, json.dumps(config))
    with pytest.raises((ConfigError, CorruptWeightsError)) as caught:
        LLMDiffAdapter.from_pretrained(saved)
    assert "\n" not in str(caught.value)


@hostile
def test_two_layers_that_differ_in_dots_only(saved: Path) -> None:
    config = config_of(saved)
    first, row = next(iter(config["cross_attention"].items()))
    config["cross_attention"][first.replace(".", "_")] = row
    write_config(saved, json.dumps(config))
    with pytest.raises(ConfigError, match="differ in dots"):
        LLMDiffAdapter.from_pretrained(saved)


@hostile
def test_heads_that_do_not_divide_the_width(saved: Path) -> None:
    config = config_of(saved)
    _of_first_layer(heads=7)(config)
    write_config(saved, json.dumps(config))
    with pytest.raises(ConfigError, match="no multiple of heads"):
        LLMDiffAdapter.from_pretrained(saved)


@hostile
@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.float8_e4m3fn, torch.int64, torch.complex64])
@pytest.mark.parametrize("name", ["phi.weight", "context.gamma"])
def test_tensors_of_another_type(saved: Path, kind: torch.dtype, name: str) -> None:
    change_tensors(saved, lambda tensors: tensors.update({name: tensors[name].to(kind)}))
    with pytest.raises(CorruptWeightsError, match=f"'{name}' in .*expected one of F64"):
        LLMDiffAdapter.from_pretrained(saved)


@hostile
@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "3",
        '"text"',
        "[" * 10_000,
        '{"a":' * 5_000 + "1" + "}" * 5_000,
        '{"num_blocks": ' + "9" * 5_000 + "}",
        "\ufeff\ufeff{}",
        "{" + " " * 5 * 2**20 + "}",
    ],
    ids=["empty", "null", "list", "number", "text", "open", "deep", "digits", "marks", "large"],
)
def test_a_config_that_is_none(saved: Path, text: str) -> None:
    write_config(saved, text)
    with pytest.raises(LLMDiffError, match=CONFIG_NAME) as caught:
        LLMDiffAdapter.from_pretrained(saved)
    assert "\n" not in str(caught.value)


@hostile
@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"sha256": ' + "[" * 10_000,
        '{"sha256": {"' + "a" * 300 + '": ""}}',
        '{"sha256": {"a\\u0000": ""}}',
    ],
    ids=["list", "deep", "long", "NUL"],
)
def test_a_manifest_that_is_none(saved: Path, text: str) -> None:
    (saved / MANIFEST_NAME).write_text(text)
    with pytest.raises(CorruptWeightsError, match=MANIFEST_NAME):
        LLMDiffAdapter.from_pretrained(saved)


@hostile
@pytest.mark.parametrize("key", ["scale", "num_blocks", "llm_id"])
def test_arguments_in_python_are_checked_alike(key: str) -> None:
    sizes = {"num_blocks": 2, "hidden_size": 8, "text_width": 8, "pooled_width": None, "cross_attention": {}}
    fields: dict[str, Any] = {"llm_id": "a", "base_model_id": "b", "family": "sd", **sizes, key: math.nan}
    with pytest.raises(ConfigError, match=f"{key} is nan"):
        LLMDiffAdapter(**fields)


_NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from([0, 1, -1, 2**31, 2**32, 2**63, 2**64, 10**18]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), _NUMBERS, st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def _fuzz(folder: Path, key: str, value: Any) -> None:
    """Load an adapter with another value for one field: it loads, or one line says why not."""
    copy = folder.with_name("fuzzed")
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    config = config_of(folder)
    if key in config:
        config[key] = value
    else:
        next(iter(config["cross_attention"].values()))[key] = value
    write_config(copy, json.dumps(config))
    said = ""
    with contextlib.suppress(ConfigError, CorruptWeightsError):
        try:
            LLMDiffAdapter.from_pretrained(copy)
        except LLMDiffError as error:
            said = str(error)
            raise
    assert "\n" not in said
    assert len(said) < 2000


_FIELDS = [
    *SavedConfig.model_fields,
    *("query_dim", "inner_dim", "heads", "out_dim", "query_bias", "out_bias", "_unknown", "unknown"),
]


@hostile
@pytest.mark.parametrize("key", _FIELDS)
@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(value=VALUES)
def test_fuzzed_fields(saved: Path, key: str, value: Any) -> None:
    _fuzz(saved, key, value)


@pytest.mark.soak
@settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))
@given(key=st.sampled_from(_FIELDS), value=VALUES)
def test_fuzzed_fields_for_long(saved: Path, key: str, value: Any) -> None:
    _fuzz(saved, key, value)
