"""A training's configuration with values of nobody's good will: a configuration in bounds, or one line."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmdiff.errors import ConfigError
from llmdiff.training.config import TrainConfig, load_config

hostile = pytest.mark.hostile("adapter config")
GOOD: dict[str, Any] = {
    "out": "run",
    "models": {"llm": "a", "base": "b"},
    "data": {"kind": "scenes"},
    "training": {"steps": 1, "batch_size": 1},
}
FIELDS = [
    (section, key)
    for section in ("models", "data", "training", "watch")
    for key in TrainConfig.model_fields[section].annotation.model_fields
] + [("", key) for key in TrainConfig.model_fields]
NUMBERS = [
    f"{section}.{key}"
    for section, key in FIELDS
    if section and TrainConfig.model_fields[section].annotation.model_fields[key].annotation in (int, float)
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    place = tmp_path / "config.yaml"
    place.write_text(yaml.safe_dump(GOOD))
    return place


def refused(path: Path, *changes: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, list(changes))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000
    return str(caught.value)


@hostile
@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e999", "true", "-1e30", "9" * 400, "[1]", "{}"])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_finite_and_in_bounds(path: Path, name: str, value: str) -> None:
    assert name in refused(path, f"{name}={value}")


@hostile
@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_an_end(path: Path, name: str) -> None:
    assert name in refused(path, f"{name}={10**19}")


def test_no_and_off_are_text_and_truth_is_still_read(path: Path) -> None:
    found = load_config(
        path, ["training.precision=no", "data.flip=no", "training.noise=off", "data.aspect_buckets=false"]
    )
    assert found.training.precision == "no"
    assert (found.data.flip, found.training.noise, found.data.aspect_buckets) == (False, False, False)
    path.write_text(path.read_text() + "watch: {validation_samples: 0}\n")
    path.write_text(path.read_text().replace("steps: 1", "steps: 1\n  precision: no"))
    assert load_config(path, []).training.precision == "no"


@hostile
def test_an_unknown_key_is_named_before_what_is_missing_with_the_nearest(path: Path) -> None:
    path.write_text(yaml.safe_dump(GOOD | {"training": {"steps": 1, "batchsize": 1}}))
    said = refused(path)
    assert "unknown key 'training.batchsize'" in said
    assert "did you mean 'batch_size'?" in said
    path.write_text(yaml.safe_dump(GOOD))
    assert "did you mean 'models'?" in refused(path, "model.llm=a")


@hostile
@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "- 1",
        "training: {steps: 1, steps: 2}",
        "[" * 5000,
        "a: " * 500,
        "{" * 3000 + "}" * 3000,
        "a: &a [x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nout: [*c, *c]",
        "? [1]\n: 2",
        "a: 2020-99-99",
        "a: !!python/object/apply:os.system [ls]",
        "\0",
        "\t- a",
        "a: " + "9" * 5000,
        "&a [*a]",
        "&a {a: *a}",
    ],
    ids=[
        *(
            "empty",
            "text",
            "list",
            "twice",
            "open",
            "keys",
            "deep",
            "aliases",
            "list as key",
            "no date",
            "code",
            "NUL",
        ),
        *("tab", "digits", "itself", "itself as key"),
    ],
)
def test_a_file_that_is_no_configuration(path: Path, text: str) -> None:
    path.write_text(text)
    refused(path)


@hostile
def test_a_file_in_another_encoding(path: Path) -> None:
    path.write_bytes("out: Bücher".encode("latin-1"))
    assert "UTF-8" in refused(path)


@hostile
def test_lists_named_billions_of_times_are_not_written_out(path: Path) -> None:
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12)]
    path.write_text(yaml.safe_dump(GOOD).replace("out: run", "out: *l11"))
    path.write_text("\n".join(lines) + "\n" + path.read_text())
    refused(path)


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.sampled_from([2**31, 2**63, 2**64, 10**18, 10**400, math.nan, math.inf, -1, 0]),
        st.text(max_size=20),
        st.sampled_from(["no", "a\nb", "\0", "\ud800", "a" * 5000, "9" * 5000, "/dev/zero", ""]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def _fuzz(section: str, key: str, value: Any) -> None:
    found: dict[str, Any] = {**GOOD}
    if section:
        found[section] = {**GOOD.get(section, {}), key: value}
    else:
        found[key] = value
    said = ""
    try:
        config = load_config_of(found)
    except ConfigError as error:
        said = str(error)
    else:
        numbers = [
            one
            for part in (config.models, config.data, config.training, config.watch)
            for one in vars(part).values()
        ]
        assert all(
            math.isfinite(one) and abs(one) <= 2**63 for one in numbers if isinstance(one, int | float)
        )
    assert "\n" not in said
    assert len(said) < 3000


def load_config_of(found: dict[str, Any]) -> TrainConfig:
    from pydantic import ValidationError

    from llmdiff.checks.validation import what_is_wrong

    try:
        return TrainConfig.model_validate(found)
    except ValidationError as error:
        raise ConfigError(what_is_wrong(error, TrainConfig)) from error


@hostile
@pytest.mark.parametrize(("section", "key"), FIELDS, ids=lambda value: value or "top")
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(value=VALUES)
def test_fuzzed_keys(section: str, key: str, value: Any) -> None:
    _fuzz(section, key, value)


@pytest.mark.soak
@settings(max_examples=100_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(field=st.sampled_from(FIELDS), value=VALUES)
def test_fuzzed_keys_for_long(field: tuple[str, str], value: Any) -> None:
    _fuzz(*field, value)


@pytest.mark.hostile("adapter config")
def test_a_template_without_a_place_for_the_prompt_is_refused_before_anything_is_loaded(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "out: run\nmodels: {llm: a, base: b, template: no place}\ndata: {kind: scenes}\n"
        "training: {steps: 1, batch_size: 1}\n"
    )
    with pytest.raises(ConfigError, match=r"models\.template is 'no place': .*expected once or twice"):
        load_config(path, [])


@pytest.mark.hostile("files and folders")
def test_the_content_of_a_file_that_is_no_configuration_is_not_shown(tmp_path):
    path = tmp_path / "shadow"
    path.write_text("root:*:20228:0:99999:7:::\n")
    with pytest.raises(ConfigError, match="is it the right file") as caught:
        load_config(path, [])
    assert "20228" not in str(caught.value)
