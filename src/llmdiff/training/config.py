"""The configuration of a training run: one YAML file, every key of which is known."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llmdiff.adapter.refiner import LAYERS
from llmdiff.errors import ConfigError, InputFileError
from llmdiff.files import read_text
from llmdiff.training.data import Shapes
from llmdiff.training.folders import folder_source
from llmdiff.training.loop import LoopConfig
from llmdiff.training.rows import Source
from llmdiff.training.shards import shards_source
from llmdiff.training.sources import SceneSource, hub_source

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelsConfig(_Strict):
    """Which LLM controls which base; names, folders or Hub ids.

    `start` is an adapter to go on from; without one, a fresh adapter is made as the next fields say.
    """

    llm: str
    base: str
    start: str | None = None
    encoding: Literal["guided", "paper"] = "guided"
    lone: Literal["token", "token+bos", "vocabulary"] = "token+bos"
    template: str | None = None
    max_length: Count = 512
    clip: Positive = 3.0
    refiner_layers: Annotated[int, Field(ge=0)] = LAYERS
    refiner_width: Count | None = None


class DataConfig(_Strict):
    """Where pictures and captions come from, see `training.sources`, and which of them are taken.

    `path`: a folder, a pattern of tar shards, or a data set's name. `store_latents` encodes every picture once, which
    asks for the same cut every time: `crop: centre`, `flip: false`. Units: `*_px` in pixels.
    """

    kind: Literal["folder", "shards", "hub", "scenes"]
    path: str = ""
    split: str = "train"
    image_column: str = "image"
    caption_columns: tuple[str, ...] = ("text",)
    scenes: Count = 20_000
    objects: Count = 24
    resolution_px: Count = 512
    multiple_px: Count | None = None
    aspect_buckets: bool = True
    max_aspect: Annotated[float, Field(ge=1)] = 2.0
    min_side_px: Count = 32
    crop: Literal["centre", "random"] = "centre"
    flip: bool = False
    store_latents: bool = False
    max_bad_share: Share = 0.05
    threads: Count = 4

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

    steps: Count
    batch_size: Count
    accumulation_steps: Count = 1
    learning_rate: Positive = 1e-4
    scalar_learning_rate: Positive = 1e-3
    lr_warmup_steps: Annotated[int, Field(ge=0)] = 500
    lr_schedule: Literal["constant", "cosine", "linear", "trapezoid"] = "cosine"
    optimizer: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    max_grad_norm: Positive = 1.0
    stop_grad_norm: Positive = 1e6
    ema_horizon: Annotated[int, Field(ge=2)] = 1000
    precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    sharded: bool = False
    gains: Literal["learned", "frozen"] = "frozen"
    score_groups: Count | None = None
    warm_start_steps: Annotated[int, Field(ge=0)] = 0
    encodings: Literal["store", "online"] = "store"
    prefetch: Annotated[int, Field(ge=0)] = 2
    noise: bool = True
    caption_dropout: Share = 0.1
    min_snr_gamma: Positive | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    checkpoint_every_s: Annotated[float, Field(ge=0)] = 600.0
    keep_last: Count = 2
    log_every: Count = 50

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
    """What is looked at while training. `trackers: null` takes tensorboard where it is installed."""

    validation_samples: Annotated[int, Field(ge=0)] = 64
    validate_every: Count = 1000
    prompts: tuple[str, ...] = (
        "a cat to the left of a red car",
        "two apples and a banana",
        "a house at night",
    )
    seeds: tuple[int, ...] = (0, 1)
    sample_every: Count = 1000
    sample_steps: Count = 20
    guidance_scale: float = 3.0
    trackers: tuple[Literal["tensorboard", "wandb"], ...] | None = None


class TrainConfig(_Strict):
    """One training run. `out` holds all it leaves; `store` what can be used again by other runs.

    `device: cpu` leaves an accelerator alone; otherwise every process takes the one that its launcher gives it.
    """

    out: Path
    store: Path | None = None
    device: Literal["cpu"] | None = None
    models: ModelsConfig
    data: DataConfig
    training: TrainingConfig
    watch: WatchConfig = WatchConfig()

    @property
    def store_folder(self) -> Path:
        """Where checked samples, latents and encodings are kept."""
        return self.store or self.out / "store"

    def as_yaml(self) -> str:
        """Return it with every default filled in."""
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def load_config(path: Path, changes: list[str]) -> TrainConfig:
    """Return the configuration in a YAML file, with `section.key=value` changes; values are YAML too.

    Raises:
        ConfigError: no such file, no YAML, an unknown key or a value out of range; by its name.
    """
    try:
        found = yaml.safe_load(read_text(path))
    except InputFileError as error:
        raise ConfigError(f"config {path}: {error}; give the path of a YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"config {path} is no YAML: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"config {path} holds {type(found).__name__}, expected keys and values")
    for change in changes:
        _apply(found, change)
    try:
        return TrainConfig.model_validate(found)
    except ValidationError as error:
        raise ConfigError(f"config {path}: {_said(error)}") from error


def _apply(found: dict[str, Any], change: str) -> None:
    name, equals, value = change.partition("=")
    if not equals:
        raise ConfigError(f"{change!r}: expected section.key=value, for instance training.steps=100")
    *sections, key = name.split(".")
    place = found
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{change!r}: {section} has no keys of its own")
        place = inner
    try:
        place[key] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{change!r}: the value is no YAML ({error})") from error


def _said(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known: Any = TrainConfig
        for part in first["loc"][:-1]:
            known = known.model_fields[part].annotation
        return f"unknown key {name!r}, known are {', '.join(known.model_fields)}"
    if first["type"] == "missing":
        return f"{name} is missing: set it"
    return f"{name} is {first['input']!r}: {first['msg']}"
