"""PNG files without the texts and colour profiles that are longer than Pillow reads."""

import io
import struct
import zlib
from io import BufferedIOBase

from lwm.files import require_package

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")
_ORIENTED = (b"Raw profile type exif\0", b"Raw profile type APP1\0", b"XML:com.adobe.xmp\0")
"""Starts of texts that may say how a picture is to be turned."""


def without_long_texts(file: BufferedIOBase) -> BufferedIOBase:
    """Returns a PNG as it is, or if its texts are too long for Pillow, a copy without them.

    Pillow's own limits belong to the process, so that raising them would concern other threads.
    """
    pillow = require_package("PIL.PngImagePlugin", "reading PNG", "media")
    spans: list[tuple[int, int]] = []
    room, is_long = pillow.MAX_TEXT_MEMORY, False  # what is too long costs some, to be inflated
    at = len(SIGNATURE)
    file.seek(at)
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        end = at + 12 + length
        if kind in _TEXTS:
            size = _size(file, kind, length, pillow.MAX_TEXT_CHUNK) if room >= 0 else None
            room -= pillow.MAX_TEXT_CHUNK if size is None else size
            is_long |= size is None or room < 0
            file.seek(at + 8)
            if size is None or not file.read(40).startswith(_ORIENTED):
                spans.append((at, end))
        if kind == b"IEND":
            break
        file.seek(at := end)
    file.seek(0)
    return _without(file, spans) if is_long else file


def _size(file: BufferedIOBase, kind: bytes, length: int, most: int) -> int | None:
    """Returns the size of a text in memory; None if it is compressed and longer than `most`."""
    if kind == b"tEXt":
        return length
    data = file.read(min(length, most))
    _, _, rest = data.partition(b"\0")
    packed = rest[1:]
    if kind == b"iTXt":
        if rest[:1] != b"\1":
            return length
        packed = rest[2:].split(b"\0", 2)[-1]
    if length > most:
        return None
    inflate = zlib.decompressobj()
    try:
        size = len(inflate.decompress(packed, most))
    except zlib.error:
        return length  # Pillow passes over it
    return None if inflate.unconsumed_tail else size


def _without(file: BufferedIOBase, spans: list[tuple[int, int]]) -> io.BytesIO:
    """Copies a file without some spans of bytes, in order."""
    copy = io.BytesIO()
    for start, end in spans:
        copy.write(file.read(start - file.tell()))
        file.seek(end)
    copy.write(file.read())
    copy.seek(0)
    return copy
