"""Settings of the image API and of the page: limits, secrets, logging."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from llmdiff.drawing.models import Models
from llmdiff.errors import ConfigError, InputFileError
from llmdiff.files import is_blank, read_text
from llmdiff.serving.request_guard import own_hosts
from llmdiff.serving.sizes import SizePolicy

_MAX_SECRET_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """The limits of the image server.

    Fields:
        model_id: the name that clients know the model by.
        token: the key that clients must send as `Authorization: Bearer ...`; None: no key needed.
        max_batch: pictures per batch. 1 gives the same bits as drawing alone; more is faster on accelerators and may
            change a pixel value by one level of 255.
        queue_size: requests that may wait; more are rejected with 429.
        max_pixels: of one picture; None: four times the pipeline's own size.
        log_prompts: write prompts to the log; if False, prompts are stored only in the pictures' metadata.
        url_store_bytes: memory for pictures behind URLs; the oldest are dropped first.
        public_url: the server's address in the URLs of pictures; None: taken from the request.
        model_aliases: further names of the model, for clients with a fixed model name.
        size_policy: "strict" draws the requested size or rejects it; "nearest" draws the pipeline's own number of
            pixels with the requested aspect ratio.
        max_upload_bytes: size of a request with a picture.

    Units: `*_s` in seconds, `*_bytes` in bytes.

    Raises:
        ConfigError: a number is out of range, or the token is blank.
    """

    model_id: str = "openmoji"
    token: str | None = None
    max_batch: int = 1
    queue_size: int = 8
    timeout_s: float = 300.0
    max_body_bytes: int = 256 * 1024
    body_timeout_s: float = 30.0
    max_pixels: int | None = None
    max_steps: int = 150
    log_prompts: bool = False
    url_lifetime_s: float = 3600.0
    url_store_bytes: int = 256 * 1024 * 1024
    public_url: str | None = None
    model_aliases: tuple[str, ...] = ()
    size_policy: SizePolicy = "strict"
    max_upload_bytes: int = 32 * 1024 * 1024

    @property
    def models(self) -> tuple[str, ...]:
        """Return all names of the model."""
        return (self.model_id, *self.model_aliases)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Return the host names of this server."""
        return own_hosts(self.public_url)

    def __post_init__(self) -> None:
        _check_positive(self, "max_batch", "queue_size", "max_body_bytes", "max_steps")
        _check_positive(self, "url_store_bytes", "max_upload_bytes")
        for name in ("timeout_s", "body_timeout_s", "url_lifetime_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a finite number above 0")
        for name in self.model_aliases:
            if not name or len(name) > 200 or not name.isprintable():
                raise ConfigError(f"model_alias is {name[:80]!r}, expected 1 to 200 printable characters")
        if self.token is not None and (len(self.token) < 8 or not self.token.isascii() or " " in self.token):
            # Never the token itself: errors are logged.
            raise ConfigError(
                f"token has {len(self.token)} characters, expected at least 8, ASCII and without spaces: make "
                'one with "openssl rand -hex 32"'
            )


@dataclass(frozen=True, kw_only=True)
class UiSettings:
    """Settings of the page: the models that visitors may choose, password and queue.

    Fields:
        adapters, llms, pipelines: the choices, the first adapter selected; visitors cannot name others, so they
            cannot make the machine read or download anything. The adapter's own LLM and pipeline are always choices.
        base: what all choices have in common: device, dtype, rewording and so on.
        password: the password of the page; None: no password needed.
        queue_size: drawings that may wait while one is drawn.

    Raises:
        ConfigError: there is no adapter, the password is short, or a number is out of range.
    """

    adapters: tuple[str, ...] = ("openmoji",)
    llms: tuple[str, ...] = ()
    pipelines: tuple[str, ...] = ()
    base: Models = field(default_factory=Models)
    password: str | None = None
    queue_size: int = 8
    max_number: int = 8
    max_steps: int = 150

    def __post_init__(self) -> None:
        if not self.adapters:
            raise ConfigError("adapters is empty, expected at least one: name an adapter")
        _check_positive(self, "queue_size", "max_number", "max_steps")
        if self.password is not None and len(self.password) < 8:
            # Never the password itself: errors are logged.
            raise ConfigError(
                f"password has {len(self.password)} characters, expected at least 8: choose a longer one"
            )

    @property
    def first_models(self) -> Models:
        """Return the models that are selected first."""
        return self.models(self.adapters[0])

    def models(
        self,
        adapter: str,
        *,
        llm: str | None = None,
        pipeline: str | None = None,
        scale: float | None = None,
        block_gains: str | None = None,
    ) -> Models:
        """Return the models of a choice."""
        return replace(
            self.base, adapter=adapter, llm=llm, pipeline=pipeline, scale=scale, block_gains=block_gains
        )


def _check_positive(settings: ServeSettings | UiSettings, *names: str) -> None:
    for name in names:
        if getattr(settings, name) < 1:
            raise ConfigError(f"{name} is {getattr(settings, name)}, expected at least 1")


def read_secret(name: Literal["token", "password"], path: Path | None, value: str | None) -> str | None:
    """Return the secret from the file, else the value; None for neither.

    From a file or the environment, never an argument, which other users of the machine can see.

    Raises:
        ConfigError: the file cannot be read, or the secret is blank.
    """
    if path is not None:
        try:
            value = read_text(path, max_bytes=_MAX_SECRET_BYTES)
        except InputFileError as error:
            raise ConfigError(
                f"{name}_file {path} cannot be read ({error}): write the {name} to it"
            ) from error
    if value is None:
        return None
    if is_blank(value):
        # A blank one would leave the server unprotected.
        raise ConfigError(f"{name} is blank: set one, or leave it out")
    return value.strip()
