"""How to serve: addresses, limits, and what is written down."""

from dataclasses import dataclass
from pathlib import Path

from llmdiff.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """The limits of the image server.

    Fields:
        model_id: the name that clients know the model by.
        token: what clients must send as `Authorization: Bearer ...`; None lets everyone in.
        max_batch: pictures drawn in one pass. 1 gives every picture the bits it has when drawn alone; more
            is faster on accelerators and may change a value of a picture by one level of 255.
        queue_size: requests that may wait; more are refused with 429.
        max_pixels: of one picture; None: four times the pipeline's own size.
        log_prompts: write prompts to the log; off, no prompt is written anywhere but into its picture.
        url_store_bytes: memory for pictures that wait behind a URL; the oldest go first.
        public_url: where clients reach the server, for the URLs of pictures; None: as the request says.

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

    def __post_init__(self) -> None:
        for name in ("max_batch", "queue_size", "max_body_bytes", "max_steps", "url_store_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("timeout_s", "body_timeout_s", "url_lifetime_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected more than 0")
        if self.token is not None and (len(self.token) < 8 or not self.token.isascii() or " " in self.token):
            # Never the token itself: errors end in logs.
            raise ConfigError(
                f"token has {len(self.token)} characters, expected at least 8, ASCII and without spaces: make "
                'one with "openssl rand -hex 32"'
            )


def read_token(path: Path | None, value: str | None) -> str | None:
    """Return the token from the file, else the value; None for neither.

    A file or the environment, never an argument: those are seen by everyone on the machine.

    Raises:
        ConfigError: the file cannot be read, or the token is blank.
    """
    if path is not None:
        try:
            value = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise ConfigError(f"token_file {path} cannot be read ({reason}): write the key to it") from error
    if value is None:
        return None
    if not value.strip():
        # A blank one would leave a server open that was meant to be closed.
        raise ConfigError("token is blank, expected a key: set one, or leave it out")
    return value.strip()
