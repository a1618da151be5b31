"""Images, videos and text files of requests, read within limits and each only once."""

import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Literal, NamedTuple

from lwm.cache import LRUCache
from lwm.errors import UserError
from lwm.generate.language_model import LanguageModel
from lwm.media.frames import FrameStream
from lwm.media.limits import Limits
from lwm.serve.config import MediaConfig
from lwm.serve.errors import ApiError
from lwm.serve.fetch import FetchError, fetch
from lwm.serve.sources import Data, read_data_address, read_file_address, require_size
from lwm.tokenizer.message import Vision

Kind = Literal["image", "video"]

_PIXELS = 1 << 25
"""Pixels of an image as decoded; larger JPEGs are decoded at a reduced size."""
_FRAME_PIXELS = 9 << 20
"""Pixels of a frame of a video: 4096 × 2304."""
_PER_SECOND = 1 << 29
"""Pixels that a machine decodes in a second, at most: bounds decoding that cannot be stopped."""
_ENTRY = 1 << 10
"""Bytes of a cached image beside its codes, about."""
_UTF8 = ("", "utf-8", "utf8", "us-ascii")


class _Use(NamedTuple):
    """The frames of a file that are read."""

    kind: Kind
    max_frames: int
    fps: float | None


class MediaReader:
    """Reads media of requests for a model; its methods wait, and many threads may call them.

    Codes are cached by the content of a file and the frames that are taken of it, and the same
    file in several requests at once is encoded for one of them.
    """

    def __init__(
        self,
        model: LanguageModel,
        config: MediaConfig,
        *,
        fetch: Callable[..., bytes] = fetch,
    ):
        """Takes the model and limits; `fetch` is that of `lwm.serve.fetch`."""
        self._model, self._config, self._fetch = model, config, fetch
        self._cache = LRUCache(config.media_cache_bytes)
        self._lock = threading.Lock()
        self._reading: dict[tuple[bytes, _Use], Future[Vision]] = {}
        self.queries = 0
        """Images and videos that were asked for."""
        self.hits = 0
        """Of these, those that had been encoded before, or were being encoded."""
        self.frames_encoded = 0

    def read(
        self,
        url: str,
        *,
        kind: Kind,
        max_frames: int | None,
        fps: float | None,
        param: str,
        salt: bytes = b"",
    ) -> Vision:
        """Reads an image or a video at an address, and encodes it.

        Args:
            url: A `data:` address, or `file://` or `http(s)://` where these are allowed.
            kind: Of an image the first frame is read, if it is animated.
            max_frames: Frames of a video at most; None: as many as configured.
            fps: Takes the frames shown at each 1/fps seconds, of which `max_frames` remain.
            param: The field of the request, for errors.
            salt: Codes are kept for requests of the same salt.

        Raises:
            ApiError: It is not allowed or cannot be read, or exceeds the limits or the context.
        """
        with _as_api_error(param):
            use = self._use(kind, max_frames, fps)
            return self._seen(self._content(url), use, salt)

    def read_bytes(
        self,
        data: bytes,
        *,
        kind: Kind,
        max_frames: int | None = None,
        fps: float | None = None,
        param: str,
        salt: bytes = b"",
    ) -> Vision:
        """Encodes an image or a video of an upload; see `read`.

        Raises:
            ApiError: It cannot be read, or exceeds the limits or the context.
        """
        with _as_api_error(param):
            use = self._use(kind, max_frames, fps)
            require_size(len(data), self._config.media_bytes)
            return self._seen(data, use, salt)

    def read_text(self, url: str, *, param: str) -> str:
        """Reads a text file in UTF-8 from a `data:` address.

        Raises:
            ApiError: It is malformed, too large or no text.
        """
        with _as_api_error(param):
            if not _starts(url, "data:"):
                raise ApiError("a file is given as data:text/plain;base64,...")
            data = read_data_address(url, self._config.media_bytes)
            if data.charset not in _UTF8:
                raise ApiError(f"the file is in {data.charset}; send it in UTF-8")
            try:
                text = data.content.decode("utf-8-sig")
            except UnicodeDecodeError:
                text = "\0"
            if "\0" in text:
                raise ApiError("the file is no text in UTF-8; other kinds of files are not read")
            return text

    def _use(self, kind: Kind, max_frames: int | None, fps: float | None) -> _Use:
        """Returns the frames to read.

        Raises:
            ApiError: There are too many.
            UserError: The model does not see.
        """
        self._model.vision  # noqa: B018  (before anything is fetched)
        if kind == "image":
            return _Use(kind, 1, None)
        config = self._config
        if max_frames is None and fps is None:
            most = self._model.context // 2 // (self._model.vision.tokens_per_frame + 1)
            max_frames = max(1, min(config.media_frames, most))
        elif max_frames is None:
            max_frames = config.max_media_frames
        if not 1 <= max_frames <= config.max_media_frames:
            raise ApiError(f"frames are {max_frames}; ask for 1 to {config.max_media_frames}")
        return _Use(kind, max_frames, fps)

    def _content(self, url: str) -> bytes:
        config = self._config
        if _starts(url, "data:"):
            return _require_media(read_data_address(url, config.media_bytes)).content
        if _starts(url, "file:"):
            if config.media_path is None:
                raise ApiError(
                    "files of the server are not read; send the file itself, or start the server "
                    "with --media-path",
                    "permission_error",
                )
            return read_file_address(url, config.media_path, config.media_bytes)
        if not _starts(url, "http:", "https:"):
            raise ApiError("the address is of no known kind; give data:image/png;base64,...")
        return self._fetch(
            url,
            allow=config.allow_media_host,
            max_bytes=config.media_bytes,
            seconds=config.media_seconds,
        )

    def _seen(self, data: bytes, use: _Use, salt: bytes) -> Vision:
        """Returns the codes of a file: cached, or from another thread that is reading it."""
        key = hashlib.sha256(salt + hashlib.sha256(data).digest()).digest(), use
        own: Future[Vision] = Future()
        with self._lock:
            found: Vision | None = self._cache.get(key)
            running = own if found is not None else self._reading.setdefault(key, own)
            self.queries += 1
            self.hits += found is not None or running is not own
        if found is not None:
            return found
        if running is not own:
            return running.result()
        try:
            vision = self._encoded(data, use)
            self._cache.put(key, vision, _ENTRY + vision.codes.nbytes)
            own.set_result(vision)
        except BaseException as error:
            own.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._reading[key]
        return vision

    def _encoded(self, data: bytes, use: _Use) -> Vision:
        def check(frames: FrameStream) -> None:
            if use.kind == "image" and frames.kind == "video":
                raise ApiError("the image is a video; send it as video_url")
            self._require_room(frames.num_selected)

        vision = self._model.see(
            data,
            max_frames=use.max_frames,
            fps=use.fps,
            limits=self._limits(len(data)),
            name=f"the {use.kind}",
            check=check,
        )
        with self._lock:
            self.frames_encoded += len(vision.codes)
        is_video = vision.is_video and use.kind == "video"
        return dataclasses.replace(vision, pixels=None, is_video=is_video, name="")

    def _require_room(self, frames: int) -> None:
        model = self._model
        size = model.marks.size(frames, model.vision.tokens_per_frame)
        if size > model.context:
            raise ApiError(
                f"{frames:,} frames have {size:,} tokens, more than the context of "
                f"{model.context:,}; ask for fewer frames",
                "exceed_context_size_error",
                code="context_length_exceeded",
                n_prompt_tokens=size,
                n_ctx=model.context,
            )

    def _limits(self, size: int) -> Limits:
        """Returns limits on a file of so many bytes, whatever it says about itself."""
        usual, seconds = Limits(), self._config.media_seconds
        return Limits(
            pixels=_PIXELS,
            frame_pixels=_FRAME_PIXELS,
            image_bytes=self._config.media_bytes,
            work=min(usual.work + usual.work_per_byte * size, int(seconds * _PER_SECOND)),
            work_per_byte=0,
            seconds=seconds,
        )


def _starts(url: str, *schemes: str) -> bool:
    return url[:8].lower().startswith(schemes)


def _require_media(data: Data) -> Data:
    """Refuses a `data:` address that says to be something else; the content decides the rest."""
    kind = data.media_type
    if kind and kind != "application/octet-stream" and not kind.startswith(("image/", "video/")):
        raise ApiError(f"{kind} is no image and no video")
    return data


@contextlib.contextmanager
def _as_api_error(param: str) -> Generator[None]:
    """Turns errors of a file into those of a field of the request."""
    try:
        yield
    except ApiError as error:
        raise error.at(param) from None
    except FetchError as error:
        kind = "permission_error" if error.status == 403 else "invalid_request_error"
        raise ApiError(str(error), kind, param=param, status=error.status) from None
    except UserError as error:
        raise ApiError(str(error), param=param) from None
