"""Contents that requests carry in `data:` addresses, or name by `file://` addresses."""

import binascii
import os
import re
import stat
import urllib.parse
from pathlib import Path
from typing import NamedTuple

from lwm.files import reason_of
from lwm.serve.errors import ApiError

_TOKEN = r"[\w!#$&^.+-]+"
_TYPE = re.compile(rf'(?:{_TOKEN}/{_TOKEN})?(?:;{_TOKEN}=(?:{_TOKEN}|"[^"]*"))*', re.ASCII)
_BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")
_BASE64 = ";base64"


class Data(NamedTuple):
    """The content of a `data:` address."""

    media_type: str
    """In lower case, such as `image/png`; empty if none is given."""
    charset: str
    content: bytes


def read_data_address(url: str, most: int) -> Data:
    """Reads a `data:` address, in base64 or with percent signs.

    Args:
        url: The address.
        most: Bytes of the content at most; larger ones are refused before they are decoded.

    Raises:
        ApiError: The address is malformed, or its content too large.
    """
    head, comma, body = url.partition(",")
    kind = head[len("data:") :]
    is_base64 = kind.lower().endswith(_BASE64)
    kind = kind[: -len(_BASE64)] if is_base64 else kind
    if not comma or not _TYPE.fullmatch(kind):
        raise ApiError("the data: address is malformed; give data:image/png;base64,...")
    # Each three characters of an escape are one byte, and each four of base64 at most three.
    size = len(body) - 2 * body.count("%")
    require_size(size // 4 * 3 - 2 if is_base64 else size, most)
    content = _unescaped(body)
    if is_base64:
        try:
            content = binascii.a2b_base64(content, strict_mode=True)
        except binascii.Error as error:
            raise ApiError(f"the data: address is no base64: {reason_of(error)}") from None
    require_size(len(content), most)
    media_type, *parameters = kind.lower().split(";")
    charset = next((each[8:] for each in parameters if each.startswith("charset=")), "")
    return Data(media_type, charset.strip('"'), content)


def read_file_address(url: str, root: Path, most: int) -> bytes:
    """Reads a regular file that lies under a folder, also after its symbolic links are followed.

    Args:
        url: `file:///` and a whole path, or `file://` and a path below the folder.
        root: The folder.
        most: Bytes of the file at most.

    Raises:
        ApiError: The address is malformed or leads elsewhere, or there is no such file.
    """
    path = _path(url)
    if ".." in path.parts:
        raise _outside()
    base = Path(os.path.abspath(root))
    real = base.resolve()
    whole = base / path
    if not (whole.is_relative_to(base) or whole.is_relative_to(real)):
        raise _outside()  # before the file system is asked: not even that a file exists is said
    try:
        found = whole.resolve()
        if not found.is_relative_to(real):
            raise _outside()
        with open(_opened(real, found.relative_to(real)), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ApiError("the file is no regular file")
            content = file.read(most + 1)
    except RuntimeError:  # older versions of Python; its message has the path
        raise ApiError("the file is a link to itself") from None
    except (OSError, ValueError) as error:  # the latter for a null character
        raise ApiError(f"the file cannot be read: {reason_of(error)}") from None
    require_size(len(content), most)
    return content


def require_size(size: int, most: int) -> None:
    """Refuses a content that is too large.

    Raises:
        ApiError: It is.
    """
    if size > most:
        raise ApiError(f"the file is larger than {most:,} bytes; make it smaller", status=413)


def _path(url: str) -> Path:
    """Returns the path of a `file://` address."""
    place = url[len("file:") :]
    if not place.startswith("//") or re.search(r"[?#]", place):
        raise ApiError("the file: address is malformed; give file:// and a path, ? and # escaped")
    place = place[2:]
    place = place[len("localhost") :] if place.startswith("localhost/") else place
    try:
        path = _unescaped(place).decode("utf-8")
    except UnicodeDecodeError:
        raise ApiError("the path of the file: address is not in UTF-8") from None
    if not path:
        raise ApiError("the file: address has no path")
    return Path(path)


def _unescaped(text: str) -> bytes:
    """Returns the bytes of a part of an address."""
    if not text.isascii() or _BAD_ESCAPE.search(text):
        raise ApiError("the address has characters beyond ASCII, or a % without two digits")
    return urllib.parse.unquote_to_bytes(text)


def _outside() -> ApiError:
    return ApiError("the file is not under the folder of --media-path", "permission_error")


def _opened(root: Path, path: Path) -> int:
    """Opens a path folder by folder without links, so that it cannot change after its check."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in path.parts[:-1]:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            folder, outer = os.open(name, flags, dir_fd=folder), folder
            os.close(outer)
        # A pipe would wait for a writer.
        return os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)
