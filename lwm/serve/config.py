"""Configuration of a server: address, keys, and limits on requests."""

import dataclasses
import math
from pathlib import Path

from lwm.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaConfig:
    """Images and videos that requests may name, and limits on reading them."""

    media_path: Path | None = None
    """A folder whose files requests may name by `file://` addresses; None: no files."""
    allow_media_host: tuple[str, ...] = ()
    """Hosts from which images and videos may be fetched, such as `example.org`; `*` is any public
    host. None are allowed by default."""
    media_bytes: int = 32 << 20
    """Bytes of an image or a video at most."""
    media_seconds: float = 30.0
    """Seconds for fetching an image or a video, and for decoding it."""
    media_frames: int = 64
    """Frames of a video that are read, where a request does not say; evenly spaced, and no more
    than half of the context holds."""
    max_media_frames: int = 4096
    """Frames of a video that a request may ask for."""
    media_cache_bytes: int = 256 << 20
    """Memory for the codes of images and videos that were read before."""

    def __post_init__(self):
        """Refuses values out of range.

        Raises:
            UserError: The value.
        """
        for name in ("media_bytes", "media_frames", "max_media_frames"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)} must be at least 1")
        if not 0 < self.media_seconds < math.inf:
            raise UserError(f"media_seconds {self.media_seconds} must be above 0, and finite")
        if self.media_cache_bytes < 0:
            raise UserError(f"media_cache_bytes {self.media_cache_bytes} must be 0 or above")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Address, keys, and limits on requests."""

    host: str = "127.0.0.1"
    """Address to listen on. Others than loopback need a key, or `no_key`."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    api_key: tuple[str, ...] = ()
    """Keys, one of which a request must have; none: no key is needed."""
    api_key_file: Path | None = None
    """A file with one key a line."""
    no_key: bool = False
    """Allow another address than loopback without a key."""
    served_name: str | None = None
    """The model's name for clients; None: the name that it was opened by."""
    allowed_host: tuple[str, ...] = ()
    """Names by which clients may address the server, besides its host and those of loopback; `*` is
    any. Guards against DNS rebinding."""
    cors_origin: tuple[str, ...] = ()
    """Origins of web pages that may use the server, such as `https://example.org`."""
    slots: int = 8
    """Answers that are written at the same time; others wait."""
    queue_tokens: int | None = None
    """Tokens of prompts and answers that may wait; None: four times the context, at least 65,536.
    More are refused with status 429."""
    key_requests: int = 64
    """Requests of one key that may wait or run at once."""
    max_n: int = 8
    """Answers to one request at most."""
    body_bytes: int = 64 << 20
    """Bytes of a request at most."""
    read_seconds: float = 60.0
    """Seconds in which a request must have arrived."""
    write_seconds: float = 60.0
    """Seconds for which a client may read nothing of an answer, before its connection ends."""
    ping_seconds: float = 15.0
    """Seconds without an event, after which a stream sends a comment, so that proxies keep it."""
    detached_seconds: float = 60.0
    """Seconds for which a stream with a name goes on that nobody reads, and for which one that has
    ended is kept."""
    drain_seconds: float = 30.0
    """Seconds for which answers may go on when the server stops."""
    evaluations: Path | None = None
    """A folder with results of evaluations, which the page shows; subfolders are searched."""
    media: MediaConfig = MediaConfig()
    """Images and videos in requests."""

    def __post_init__(self):
        """Refuses an open address without a key, and values out of range.

        Raises:
            UserError: The value.
        """
        for name in ("slots", "key_requests", "max_n", "body_bytes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)} must be at least 1")
        for name in ("read_seconds", "write_seconds", "ping_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} {getattr(self, name)} must be above 0, and finite")
        for name in ("detached_seconds", "drain_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} {getattr(self, name)} must be 0 or above, and finite")
        if not 0 <= self.port < 1 << 16:
            raise UserError(f"port {self.port} must be from 0 to {(1 << 16) - 1}")
        if not all(self.api_key):
            raise UserError("an API key is empty; give a text of at least one character")
        is_open = self.host not in LOOPBACK
        if is_open and not (self.api_key or self.api_key_file or self.no_key):
            raise UserError(
                f"host {self.host} is open to other machines: give a key with --api-key or "
                "--api-key-file, or say --no-key"
            )
