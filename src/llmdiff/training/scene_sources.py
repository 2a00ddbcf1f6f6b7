"""Scenes of the embedded default's world as training data, drawn on access without picture files."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Literal

from PIL import Image

from llmdiff.training.rows import Row
from llmdiff.world.rendering import render
from llmdiff.world.scenes import Scene, World
from llmdiff.world.splits import sample_scene, training_caption

Wording = Literal["training", "reworded"]
"""Wording of captions: like the base's training captions, or reworded with those as plain wording."""


class SceneSource:
    """Training scenes of `llmdiff.world` by index; an index always gives the same scene and captions.

    A sample's content is its index and a digest of drawn scenes, so that a change of artwork or renderer changes all
    samples and their latents are encoded again.
    """

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
        self._world = World(thing_count=things, styles=tuple(styles))
        self._count, self._side, self._wording, self._seed = count, image_size_px, wording, seed
        digest = sha256()
        for index in range(4):
            scene, text, plain = self._sample(index)
            digest.update(f"{text}|{plain}|{seed}".encode() + render(scene, image_size_px).tobytes())
        self._drawn_as = digest.hexdigest()
        self.fingerprint = f"{count} scenes {self._drawn_as}"

    def __len__(self) -> int:
        return self._count

    def row(self, index: int) -> Row:
        """Return one sample."""
        scene, text, plain = self._sample(index)
        return Row(
            key=f"scene {index}",
            captions=[text],
            plain_captions=[plain],
            content=lambda: f"{self._drawn_as} {index}".encode(),
            decode=lambda _: Image.fromarray(render(scene, self._side)),
            size_px=(self._side, self._side),
        )

    def _sample(self, index: int) -> tuple[Scene, str, str]:
        """Return a scene, its caption, and the caption's plain wording."""
        scene = sample_scene(self._seed, index, self._world)
        plain = training_caption(scene, self._seed, index, "plain").text
        if self._wording == "training":
            return scene, plain, plain
        return scene, training_caption(scene, self._seed, index, "rich").text, plain
