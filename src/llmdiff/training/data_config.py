"""The section `data` of a training configuration: where pictures and captions come from."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llmdiff.errors import ConfigError
from llmdiff.training.captions import captions_source
from llmdiff.training.fields import Name, Real, Section, Share, Side, Whole
from llmdiff.training.folders import folder_source
from llmdiff.training.rows import Source
from llmdiff.training.scene_sources import SceneSource, Wording
from llmdiff.training.shapes import Shapes
from llmdiff.training.shards import shards_source
from llmdiff.training.sources import hub_source


class DataConfig(Section):
    """The source of pictures and captions, see `training.sources`, and limits on the samples.

    Fields:
        path: a folder, a pattern of tar shards, a data set's name, or, with kind "captions", a file of captions
            without pictures for training from captions alone, see `training.captions`.
        scenes: number of drawn scenes, of kind "scenes"; they have `things` things (null: all) in `styles`.
        wording: "reworded" uses more words in captions of scenes than the base was trained with.
        store_latents: encode every picture once; this needs a constant crop: `crop: centre`, `flip: false`.

    Units: `*_px` in pixels.
    """

    kind: Literal["folder", "shards", "hub", "captions", "scenes"]
    path: Name = ""
    split: Name = "train"
    image_column: Name = "image"
    caption_columns: tuple[Name, ...] = ("text",)
    scenes: Annotated[Whole, Field(ge=1, le=100_000_000)] = 20_000
    things: Annotated[Whole, Field(ge=20, le=10_000)] | None = 72
    styles: tuple[Literal["flat", "line", "3d"], ...] = ("flat", "line")
    wording: Wording = "training"
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
        """Return the source of samples."""
        if self.kind == "scenes":
            return SceneSource(
                self.scenes,
                things=self.things,
                styles=self.styles,
                image_size_px=self.resolution_px,
                wording=self.wording,
            )
        if not self.path:
            raise ConfigError(f"data.path is empty, expected the path of the {self.kind}: set it")
        if self.kind == "folder":
            return folder_source(Path(self.path))
        if self.kind == "captions":
            return captions_source(Path(self.path), side_px=self.resolution_px)
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
        if self.store_latents and self.kind == "captions":
            raise ValueError("captions have no pictures to store latents of: leave store_latents out")
        if self.store_latents and (self.crop != "centre" or self.flip):
            raise ValueError(
                "store_latents keeps one cut of each picture: set crop to centre and flip to false"
            )
        return self

    def shapes(self, multiple_px: int) -> Shapes:
        """Return the shapes of training pictures, with sides that are multiples of `multiple_px`."""
        own = {field.name: getattr(self, field.name) for field in fields(Shapes)}
        return Shapes(**own | {"multiple_px": self.multiple_px or multiple_px})
