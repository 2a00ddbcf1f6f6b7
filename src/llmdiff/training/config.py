"""The configuration of a training run: one YAML file; unknown keys are errors."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from llmdiff.adapter.settings import AdapterSettings
from llmdiff.checks.bounds import COUNT, GUIDANCE, STEPS, TRAINING_STEPS, short
from llmdiff.checks.validation import what_is_wrong
from llmdiff.errors import ConfigError, InputFileError
from llmdiff.files import read_text
from llmdiff.language.settings import Encoding
from llmdiff.training.adapter_conditioning import Gains
from llmdiff.training.data_config import DataConfig
from llmdiff.training.fields import (
    Count,
    Name,
    Place,
    Positive,
    Rate,
    Real,
    Section,
    Seed,
    Share,
    Steps,
    StepsOrNone,
    Whole,
    within,
)
from llmdiff.training.loop_config import LoopConfig
from llmdiff.training.yaml_text import parse_yaml

if TYPE_CHECKING:
    from llmdiff.adapter.adapter import LLMDiffAdapter

_MAX_CONFIG_BYTES = 2**20


class ModelsConfig(AdapterSettings):
    """LLM and base pipeline as names, folders or Hub ids, and the settings of a new adapter.

    `start` is an adapter to continue training; the other settings are then those of that adapter, but `routing` above 1
    gives groups of attention layers their own gains in an adapter without groups, at first the adapter's.
    """

    llm: Name
    base: Name
    start: Name | None = None
    encoding: Encoding = "guided"
    clip: Positive = 3.0

    def continued(self, adapter: "LLMDiffAdapter") -> "LLMDiffAdapter":
        """Return the adapter of `start`, with groups of attention layers if `routing` asks for them.

        Raises:
            ConfigError: a setting is neither the default nor the adapter's own.
        """
        own = adapter.arguments
        for name in AdapterSettings.model_fields:
            value = getattr(self, name)
            default = type(self).model_fields[name].default
            if not name.startswith("routing") and value not in (own[name], default):
                raise ConfigError(
                    f"models.{name} is {short(value)}, but in the adapter of models.start {short(self.start)} it is "
                    f"{short(own[name])}: leave out models.{name}, or models.start to train a new adapter"
                )
        return adapter if self.routing == 1 else adapter.with_routing(self.routing, self.routing_form)


class TrainingConfig(Section):
    """Settings of the training.

    Fields:
        batch_size: samples in one pass of one process.
        learning_rate, scalar_learning_rate: maximum rates; the second is for gains and gates.
        gains: "frozen" keeps the gains of the LLM's blocks, so each caption is encoded once and read from the store
            (with `encodings: online` encoded in every step). "first" trains them in the first `gain_steps` steps, on
            `gain_captions` captions whose scores are stored block by block, and then freezes them. "learned" trains
            them in every step.
        score_groups: store scores as K sums of neighbouring blocks, which share a gain. Without it, "learned" runs
            the LLM in every step, with all block updates of a batch in memory.
        prefetch: number of batches that are read and encoded while earlier ones train; it does not change results.
        compile: compile the denoiser with `torch.compile` for the steps on pictures; a name selects the backend.
        warm_start_steps: steps from captions alone before the first picture, which train the adapter to match the
            base's own text encoder, see `training.warm_start`. With `steps: 0` no pictures are used.
        lr_share_after_warm_start: factor of the learning rates on pictures after a warm start.
        lr_warmup_share: the learning rate's warm-up takes at most this share of the steps of every stage.
    """

    steps: StepsOrNone
    batch_size: Count
    accumulation_steps: Count = 1
    learning_rate: Rate = 1e-4
    scalar_learning_rate: Rate = 1e-3
    lr_warmup_steps: StepsOrNone = 500
    lr_warmup_share: Share = 1.0
    lr_schedule: Literal["constant", "cosine", "linear", "trapezoid"] = "cosine"
    optimizer: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    weight_decay: Annotated[Real, Field(ge=0, le=100)] = 0.01
    max_grad_norm: Positive = 1.0
    stop_grad_norm: Positive = 1e6
    ema_horizon: Annotated[Whole, Field(ge=2, le=TRAINING_STEPS.high)] = 1000
    precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    compile: bool | Literal["inductor", "aot_eager", "eager", "cudagraphs"] = False
    sharded: bool = False
    gains: Gains = "frozen"
    gain_steps: StepsOrNone = 0
    gain_captions: Count = 1500
    score_groups: Annotated[Whole, Field(ge=1, le=10_000)] | None = None
    warm_start_steps: StepsOrNone = 0
    lr_share_after_warm_start: Annotated[Real, Field(gt=0, le=1)] = 1.0
    encodings: Literal["store", "online"] = "store"
    prefetch: Annotated[Whole, Field(ge=0, le=1000)] = 2
    noise: bool = True
    caption_dropout: Share = 0.1
    min_snr_gamma: Positive | None = None
    seed: Seed = 0
    checkpoint_every_s: Annotated[Real, Field(ge=0, le=1e9)] = 600.0
    keep_last: Count = 2
    log_every: Steps = 50

    @model_validator(mode="after")
    def _has_steps(self) -> Self:
        if not self.steps and not self.warm_start_steps:
            raise ValueError(
                "steps is 0, and warm_start_steps too: set steps, or warm_start_steps to train on captions alone"
            )
        return self

    @model_validator(mode="after")
    def _groups_learn(self) -> Self:
        if self.score_groups is not None and (self.gains == "frozen" or self.encodings == "online"):
            raise ValueError(
                "score_groups is for trained gains: set gains to first or learned and encodings to store, or leave "
                "score_groups out"
            )
        if self.gains != "first":
            if self.gain_steps:
                raise ValueError(
                    f"gain_steps is for gains: first, but gains is {self.gains}: leave gain_steps out"
                )
            return self
        name = "warm_start_steps" if self.warm_start_steps else "steps"
        if not 0 < self.gain_steps < getattr(self, name):
            raise ValueError(
                f"gains: first needs gain_steps above 0 and below {name}, got {self.gain_steps}: set gain_steps"
            )
        if self.encodings == "online":
            raise ValueError("gains: first needs stored encodings: set encodings to store")
        return self

    @model_validator(mode="after")
    def _compiles_whole_weights(self) -> Self:
        if self.compile and self.sharded:
            raise ValueError(
                "compile and sharded are both set, and weights that are shared out are not compiled: leave one out"
            )
        return self

    @property
    def backend(self) -> str | None:
        """Return the backend of torch.compile; None: nothing is compiled."""
        return "inductor" if self.compile is True else self.compile or None

    @property
    def stores_encodings(self) -> bool:
        """Return whether encodings or grouped scores of all captions are stored before training."""
        return self.encodings == "store" and (self.gains != "learned" or self.score_groups is not None)

    def loop(self, watch: "WatchConfig") -> LoopConfig:
        """Return the settings of the training loop."""
        names = set(LoopConfig.__dataclass_fields__) & set(type(self).model_fields) - {"optimizer"}
        return LoopConfig(
            **{name: getattr(self, name) for name in names},
            optimizer="adamw8bit" if self.optimizer == "adamw8bit" else "adamw",
            validate_every=watch.validate_every,
            sample_every=watch.sample_every,
        )


class WatchConfig(Section):
    """Settings of logs, sample pictures and validation. `trackers: null` uses tensorboard if it is installed.

    `validation_samples: null` holds out a tenth of the good samples for validation, at most 64, and none if all steps
    are from captions alone, because validation uses pictures.
    """

    validation_samples: Annotated[Whole, Field(ge=0, le=COUNT.high)] | None = None
    validate_every: Steps = 1000
    prompts: tuple[Annotated[str, Field(max_length=100_000)], ...] = (
        "a cat to the left of a red car",
        "two apples and a banana",
        "a house at night",
    )
    seeds: tuple[Seed, ...] = (0, 1)
    sample_every: Steps = 1000
    sample_steps: Annotated[Whole, within(STEPS)] = 20
    guidance_scale: Annotated[Real, within(GUIDANCE)] = 3.0
    trackers: tuple[Literal["tensorboard", "wandb"], ...] | None = None


class TrainConfig(Section):
    """One training run. `out` is the folder for its results, `store` the folder for data that other runs can use.

    `device: cpu` trains on the CPU; otherwise every process uses the accelerator that its launcher assigns.
    """

    out: Place
    store: Place | None = None
    device: Literal["cpu"] | None = None
    models: ModelsConfig
    data: DataConfig
    training: TrainingConfig
    watch: WatchConfig = WatchConfig()

    @model_validator(mode="after")
    def _routing_learns(self) -> Self:
        if self.models.routing > 1 and self.models.start is None and self.training.gains == "frozen":
            raise ValueError(
                f"models.routing is {self.models.routing}, but training.gains is frozen, so all groups would keep the "
                "same gains: set gains to first or learned, or leave routing out"
            )
        return self

    @model_validator(mode="after")
    def _pictures_for_steps(self) -> Self:
        if self.data.kind == "captions" and self.training.steps:
            raise ValueError(
                f"training.steps is {self.training.steps}, but data.kind captions has no pictures: set training.steps "
                "to 0 and training.warm_start_steps to the number of steps, or name data with pictures"
            )
        if not self.training.steps and self.watch.validation_samples:
            raise ValueError(
                f"watch.validation_samples is {self.watch.validation_samples}, but training.steps is 0, and validation "
                "is on pictures: leave validation_samples out"
            )
        return self

    @property
    def store_folder(self) -> Path:
        """Return the folder of checked samples, latents and encodings."""
        return self.store or self.out / "store"

    def validation_count(self, samples: int) -> int:
        """Return the number of good samples held out for validation.

        Raises:
            ConfigError: fewer samples than a batch are left for training.
        """
        if not self.training.steps:
            return 0
        given = self.watch.validation_samples
        count = min(64, samples // 10) if given is None else given
        batch = self.training.batch_size
        if samples - count < batch:
            raise ConfigError(
                f"training.batch_size is {batch}, but of {samples} good samples {max(0, samples - count)} are left to "
                f"train on (watch.validation_samples: {count}): lower one of them or add pictures"
            )
        return count

    def as_yaml(self) -> str:
        """Return the configuration as YAML with all defaults filled in."""
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def load_config(path: Path, changes: list[str]) -> TrainConfig:
    """Return the configuration in a YAML file, with `section.key=value` changes; values are YAML too.

    Raises:
        ConfigError: the file does not exist or is not YAML, a key is unknown or a value out of range.
    """
    try:
        text = read_text(path, max_bytes=_MAX_CONFIG_BYTES)
    except InputFileError as error:
        raise ConfigError(f"config: {error}; give the path of a YAML file") from error
    found = parse_yaml(f"config {path} is not YAML", text)
    if not isinstance(found, dict):
        raise ConfigError(f"config {path} contains a {type(found).__name__}, expected keys and values")
    for change in changes:
        _apply(found, change)
    try:
        return TrainConfig.model_validate(found)
    except ValidationError as error:
        raise ConfigError(f"config {path}: {what_is_wrong(error, TrainConfig)}") from error


def _apply(found: dict[str, Any], change: str) -> None:
    name, equals, value = change.partition("=")
    if not equals:
        raise ConfigError(f"{short(change)}: expected section.key=value, for instance training.steps=100")
    *sections, key = name.split(".")
    place = found
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{short(change)}: {short(section)} is a value, not a section")
        place = inner
    place[key] = parse_yaml(f"{short(change)}: the value is not YAML", value)
