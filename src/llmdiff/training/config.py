"""The configuration of a training run: one YAML file, every key of which is known."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from llmdiff.adapter.settings import AdapterSettings
from llmdiff.checks.bounds import (
    COUNT,
    GUIDANCE,
    SEED,
    SIDE_PX,
    STEPS,
    TRAINING_STEPS,
    TRAINING_STEPS_OR_NONE,
    Bounds,
    short,
)
from llmdiff.checks.validation import what_is_wrong
from llmdiff.errors import ConfigError, InputFileError
from llmdiff.files import is_blank, read_text
from llmdiff.language.encoding import Encoding
from llmdiff.training.data import Shapes
from llmdiff.training.folders import folder_source
from llmdiff.training.loop_config import LoopConfig
from llmdiff.training.rows import Source
from llmdiff.training.shards import shards_source
from llmdiff.training.sources import SceneSource, hub_source
from llmdiff.training.yaml_text import parse_yaml

_MAX_CONFIG_BYTES = 2**20


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


def _place(value: Any) -> Any:
    # Its type first: a list may name others billions of times.
    text = str(value) if isinstance(value, str | Path) else ""
    if is_blank(text) or len(text) > 4096 or not text.isprintable():
        raise ValueError("expected the path of a folder")
    return value


def _within(bounds: Bounds) -> Any:
    return Field(ge=bounds.low, le=bounds.high)


_NUMBER = BeforeValidator(_no_truth)  # which `true` is not
Whole = Annotated[int, _NUMBER]
Real = Annotated[float, _NUMBER]
Steps = Annotated[Whole, _within(TRAINING_STEPS)]
StepsOrNone = Annotated[Whole, _within(TRAINING_STEPS_OR_NONE)]
Count = Annotated[Whole, _within(COUNT)]
Side = Annotated[Whole, _within(SIDE_PX)]
Seed = Annotated[Whole, _within(SEED)]
Share = Annotated[Real, Field(ge=0, le=1)]
Rate = Annotated[Real, Field(gt=0, le=10)]
Positive = Annotated[Real, Field(gt=0, le=1e12)]
# Of a model, a data set, a column: what no name can have is refused before it becomes a path.
Name = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")]
Place = Annotated[Path, BeforeValidator(_place)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelsConfig(AdapterSettings):
    """Which LLM controls which base; names, folders or Hub ids.

    `start` is an adapter to go on from; without one, a fresh adapter is made as the other fields say.
    """

    llm: Name
    base: Name
    start: Name | None = None
    encoding: Encoding = "guided"
    clip: Positive = 3.0


class DataConfig(_Strict):
    """Where pictures and captions come from, see `training.sources`, and which of them are taken.

    `path`: a folder, a pattern of tar shards, or a data set's name. `store_latents` encodes every picture once, which
    asks for the same cut every time: `crop: centre`, `flip: false`. Units: `*_px` in pixels.
    """

    kind: Literal["folder", "shards", "hub", "scenes"]
    path: Name = ""
    split: Name = "train"
    image_column: Name = "image"
    caption_columns: tuple[Name, ...] = ("text",)
    scenes: Annotated[Whole, Field(ge=1, le=100_000_000)] = 20_000
    objects: Annotated[Whole, Field(ge=1, le=10_000)] = 24
    resolution_px: Side = 512
    multiple_px: Annotated[Whole, Field(ge=1, le=1024)] | None = None
    aspect_buckets: bool = True
    max_aspect: Annotated[Real, Field(ge=1, le=16)] = 2.0
    min_side_px: Side = 32
    crop: Literal["centre", "random"] = "centre"
    flip: bool = False
    store_latents: bool = False
    max_bad_share: Share = 0.05
    threads: Annotated[Whole, Field(ge=1, le=1024)] = 4

    def source(self, cache: Path) -> Source:
        """Return the samples as they are found."""
        if self.kind == "scenes":
            return SceneSource(self.scenes, objects=self.objects, image_size_px=self.resolution_px, seed=0)
        if not self.path:
            raise ConfigError(f"data.path is empty, expected the place of the {self.kind}: set it")
        if self.kind == "folder":
            return folder_source(Path(self.path))
        if self.kind == "shards":
            return shards_source(self.path, cache=cache)
        return hub_source(
            self.path,
            split=self.split,
            image_column=self.image_column,
            caption_columns=self.caption_columns,
            cache=cache,
        )

    @model_validator(mode="after")
    def _one_cut(self) -> Self:
        if self.store_latents and (self.crop != "centre" or self.flip):
            raise ValueError(
                "store_latents keeps one cut of each picture: set crop to centre and flip to false"
            )
        return self

    def shapes(self, multiple_px: int) -> Shapes:
        """Return which pictures are taken; `multiple_px` is what the base asks of their sides."""
        return Shapes(
            resolution_px=self.resolution_px,
            multiple_px=self.multiple_px or multiple_px,
            aspect_buckets=self.aspect_buckets,
            max_aspect=self.max_aspect,
            min_side_px=self.min_side_px,
            crop=self.crop,
            flip=self.flip,
        )


class TrainingConfig(_Strict):
    """How to train. `batch_size` is that of one pass of one process; rates are maxima.

    `gains: learned` trains the weights of the LLM's blocks. With `score_groups: K` each caption's scores are stored
    as K sums of neighbouring blocks, which then share a gain; without, the LLM runs in every step and all block
    updates of a batch are in memory. `frozen` keeps the gains, so each caption is encoded once and then read from
    the store, or, with `encodings: online`, whenever it comes up. `prefetch` batches are read and encoded while
    earlier ones train; 0 makes each when it is needed. It changes no bit. `warm_start_steps` before the first picture
    bring the adapter to where the base's own text encoder is, from captions alone, see `training.warm_start`.
    """

    steps: Steps
    batch_size: Count
    accumulation_steps: Count = 1
    learning_rate: Rate = 1e-4
    scalar_learning_rate: Rate = 1e-3
    lr_warmup_steps: StepsOrNone = 500
    lr_schedule: Literal["constant", "cosine", "linear", "trapezoid"] = "cosine"
    optimizer: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    weight_decay: Annotated[Real, Field(ge=0, le=100)] = 0.01
    max_grad_norm: Positive = 1.0
    stop_grad_norm: Positive = 1e6
    ema_horizon: Annotated[Whole, Field(ge=2, le=TRAINING_STEPS.high)] = 1000
    precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    sharded: bool = False
    gains: Literal["learned", "frozen"] = "frozen"
    score_groups: Annotated[Whole, Field(ge=1, le=10_000)] | None = None
    warm_start_steps: StepsOrNone = 0
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
    def _groups_learn(self) -> Self:
        if self.score_groups is not None and (self.gains == "frozen" or self.encodings == "online"):
            raise ValueError(
                "score_groups stores what learned gains weigh: set gains to learned and encodings to store, "
                "or leave score_groups out"
            )
        return self

    @property
    def stores_encodings(self) -> bool:
        """Whether every caption is encoded beforehand, or its grouped scores."""
        return self.encodings == "store" and (self.gains == "frozen" or self.score_groups is not None)

    def loop(self, watch: "WatchConfig") -> LoopConfig:
        """Return the loop's part of it."""
        names = set(LoopConfig.__dataclass_fields__) & set(type(self).model_fields) - {"optimizer"}
        return LoopConfig(
            **{name: getattr(self, name) for name in names},
            optimizer="adamw8bit" if self.optimizer == "adamw8bit" else "adamw",
            validate_every=watch.validate_every,
            sample_every=watch.sample_every,
        )


class WatchConfig(_Strict):
    """What is looked at while training. `trackers: null` takes tensorboard where it is installed.

    `validation_samples: null` holds out a tenth of the good samples for validation, at most 64.
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
    sample_steps: Annotated[Whole, _within(STEPS)] = 20
    guidance_scale: Annotated[Real, _within(GUIDANCE)] = 3.0
    trackers: tuple[Literal["tensorboard", "wandb"], ...] | None = None


class TrainConfig(_Strict):
    """One training run. `out` holds all it leaves; `store` what can be used again by other runs.

    `device: cpu` leaves an accelerator alone; otherwise every process takes the one that its launcher gives it.
    """

    out: Place
    store: Place | None = None
    device: Literal["cpu"] | None = None
    models: ModelsConfig
    data: DataConfig
    training: TrainingConfig
    watch: WatchConfig = WatchConfig()

    @property
    def store_folder(self) -> Path:
        """Where checked samples, latents and encodings are kept."""
        return self.store or self.out / "store"

    def validation_count(self, samples: int) -> int:
        """Return how many of the good samples are held out for validation.

        Raises:
            ConfigError: the rest is less than a batch.
        """
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
        """Return it with every default filled in."""
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def load_config(path: Path, changes: list[str]) -> TrainConfig:
    """Return the configuration in a YAML file, with `section.key=value` changes; values are YAML too.

    Raises:
        ConfigError: no such file, no YAML, an unknown key or a value out of range; by its name.
    """
    try:
        text = read_text(path, max_bytes=_MAX_CONFIG_BYTES)
    except InputFileError as error:
        raise ConfigError(f"config: {error}; give the path of a YAML file") from error
    found = parse_yaml(f"config {path} is no YAML", text)
    if not isinstance(found, dict):
        raise ConfigError(f"config {path} holds {type(found).__name__}, expected keys and values")
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
            raise ConfigError(f"{short(change)}: {short(section)} has no keys of its own")
        place = inner
    place[key] = parse_yaml(f"{short(change)}: the value is no YAML", value)
