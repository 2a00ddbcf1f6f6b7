"""Scenes of the embedded worlds as training data, drawn on access without picture files."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Literal

import numpy as np
from PIL import Image

from llmdiff.training.rows import Row

Wording = Literal["training", "reworded"]
"""Wording of captions: like the base's training captions, or reworded with those as plain wording."""

Drawing = tuple[str, str, Callable[[], np.ndarray]]
"""A caption, its plain wording, and a function that draws the picture, (side, side, 3) uint8."""


class GeneratedSource(ABC):
    """Scenes by index; an index always gives the same scene and captions.

    A sample's content is its index and a digest of drawn scenes, so that a change of artwork or renderer changes all
    samples and their latents are encoded again.
    """

    def __init__(self, count: int, *, image_size_px: int, wording: Wording, seed: int) -> None:
        self._count, self._side, self._wording, self._seed = count, image_size_px, wording, seed
        digest = sha256()
        for index in range(4):
            text, plain, draw = self._scene(index)
            digest.update(f"{text}|{plain}|{seed}".encode() + draw().tobytes())
        self._drawn_as = digest.hexdigest()
        self.fingerprint = f"{count} scenes {self._drawn_as}"

    def __len__(self) -> int:
        return self._count

    def row(self, index: int) -> Row:
        """Return one sample."""
        text, plain, draw = self._scene(index)
        return Row(
            key=f"scene {index}",
            captions=[text],
            plain_captions=[plain],
            content=lambda: f"{self._drawn_as} {index}".encode(),
            decode=lambda _: Image.fromarray(draw()),
            size_px=(self._side, self._side),
        )

    @abstractmethod
    def _scene(self, index: int) -> Drawing:
        """Return the captions of a scene and the function that draws it."""


class SceneSource(GeneratedSource):
    """Training scenes of the embedded default's 24 things, or more of them."""

    def __init__(
        self, count: int, *, objects: int, image_size_px: int, wording: Wording = "training", seed: int = 0
    ) -> None:
        from llmdiff.openmoji.contents import World

        self._world = World(objects=objects)
        super().__init__(count, image_size_px=image_size_px, wording=wording, seed=seed)

    def _scene(self, index: int) -> Drawing:
        from llmdiff.openmoji.captions import caption
        from llmdiff.openmoji.scenes import draw, lay_out

        rng = np.random.default_rng([self._seed, 12, index])
        content = self._world.training_content(rng)
        text = caption(content, self._world, rng, wording=self._wording)
        scene = lay_out(content, rng)
        plain = text
        if self._wording == "reworded":
            plain = caption(content, self._world, rng, wording="plain")
        return text, plain, lambda: draw(scene, image_size_px=self._side)


class WorldSource(GeneratedSource):
    """Training scenes of `llmdiff.world`: all its things and styles, or some."""

    def __init__(
        self,
        count: int,
        *,
        things: int | None,
        styles: Sequence[Literal["flat", "line", "3d"]],
        image_size_px: int,
        wording: Wording = "training",
        seed: int = 0,
    ) -> None:
        from llmdiff.world.scenes import World

        self._world = World(thing_count=things, styles=tuple(styles))
        super().__init__(count, image_size_px=image_size_px, wording=wording, seed=seed)

    def _scene(self, index: int) -> Drawing:
        from llmdiff.world.rendering import render
        from llmdiff.world.splits import sample_scene, training_caption

        scene = sample_scene(self._seed, index, self._world)
        plain = training_caption(scene, self._seed, index, "plain").text
        text = plain
        if self._wording == "reworded":
            text = training_caption(scene, self._seed, index, "rich").text
        return text, plain, lambda: render(scene, self._side)
