"""Texts in files of images and videos, such as the prompt that they were generated from.

A PNG has it as its text `parameters`, JPEG and WebP as the description in EXIF, a GIF and an MP4 as
their comment.
"""

import io
import json
from pathlib import Path
from typing import Any

import lwm
from lwm.errors import UserError
from lwm.files import reading, require_package
from lwm.media.limits import image_module

KEY = "parameters"
"""The name of the text in a PNG."""
_DESCRIPTION = 0x010E
_MOST_IN_JPEG = 65_000
"""Bytes of the text of a JPEG, whose segments have at most 65,533."""
_FORMATS = ("GIF", "JPEG", "PNG", "WEBP")


def image_options(kind: str, text: str) -> dict[str, Any]:
    """Returns the options of Pillow that write a text into a file.

    Args:
        kind: PNG, JPEG, WEBP or GIF.
        text: The text.
    """
    data = text.encode(errors="replace")
    if kind == "PNG":
        info = require_package("PIL.PngImagePlugin", "writing PNG", "media").PngInfo()
        # Others read texts in Latin-1 more often than those in UTF-8.
        info.add_text(KEY, data.decode()) if text.isascii() else info.add_itxt(KEY, data.decode())
        return {"pnginfo": info}
    if kind == "GIF":
        return {"comment": data}
    if kind == "JPEG" and len(data) > _MOST_IN_JPEG:
        return {}
    exif = image_module().Exif()
    exif[_DESCRIPTION] = data
    return {"exif": exif.tobytes()}


def note(*, model: str, seed: int, prompt: str | None = None, **settings: Any) -> str:
    """Returns the text of a generated file: what it was generated from and with, as JSON.

    Args:
        model: The model's name.
        seed: The seed.
        prompt: The text that the file shows, if it is a request of its own.
        **settings: The sampling.
    """
    asked = {} if prompt is None else {"prompt": prompt}
    made = {"seed": seed, "model": model, "software": f"lwm {lwm.__version__}"}
    text = json.dumps(asked | made | settings, ensure_ascii=False, separators=(",", ":"))
    return text.encode(errors="replace").decode()  # lone surrogates, which UTF-8 lacks


def read_text(file: str | Path | bytes) -> str | None:
    """Returns the text that an image or a video was written with; None if there is none.

    Args:
        file: A path, or the bytes of a file.

    Raises:
        UserError: The file cannot be read, or is of none of the formats that are written.
    """
    name = "the file" if isinstance(file, bytes) else str(file)
    if isinstance(file, bytes):
        return _text_of(io.BytesIO(file), name)
    with reading(file), Path(file).open("rb") as opened:
        return _text_of(opened, name)


def _text_of(file: Any, name: str) -> str | None:
    image = image_module()
    try:
        with image.open(file, formats=_FORMATS) as opened:
            return _of_image(opened)
    except image.UnidentifiedImageError:
        file.seek(0)
        return _of_video(file, name)
    except Exception:  # of many kinds, if a file is damaged
        raise UserError(
            f"{name} is damaged, so that its text cannot be read; take another copy of it"
        ) from None


def _of_image(opened: Any) -> str | None:
    """Returns the text of an image that is open and not decoded."""
    if opened.format == "PNG":
        found = opened.info.get(KEY)
        return None if found is None else str(found)
    if opened.format == "GIF":
        comment = opened.info.get("comment")
        return None if comment is None else comment.decode(errors="replace")
    # Pillow takes it for Latin-1.
    found = opened.getexif().get(_DESCRIPTION)
    if not isinstance(found, str):
        return None
    try:
        return found.encode("latin-1").decode()
    except UnicodeError:
        return found


def _of_video(file: Any, name: str) -> str | None:
    """Returns the comment of a video."""
    av = require_package("av", "reading videos", "media")
    try:
        with av.open(
            file, format="mp4", metadata_errors="replace", options={"codec_whitelist": "h264"}
        ) as container:
            return container.metadata.get("comment")
    except av.error.FFmpegError:
        raise UserError(
            f"{name} is no PNG, JPEG, WebP, GIF or MP4; a text is read from these"
        ) from None
