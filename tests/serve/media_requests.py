"""Requests to a reader of media, and their refusals."""

import base64
import io

import pytest
from bombs import Image

from lwm.serve.errors import ApiError

PARAM = "messages.0.content.1.image_url.url"


def read(reader, url, *, kind="image", max_frames=None, fps=None):
    return reader.read(url, kind=kind, max_frames=max_frames, fps=fps, param=PARAM)


def refused(call, *arguments, **options):
    """Returns the status and the message of a refusal."""
    with pytest.raises(ApiError) as caught:
        call(*arguments, **options)
    fields = caught.value.to_json()["error"]
    assert fields["param"] == PARAM
    assert "\n" not in fields["message"]
    return caught.value.status, fields["message"]


def saved(image, kind="PNG", **options):
    image.save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def address(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture(colour="red", side=40):
    return saved(Image.new("RGB", (side, side), colour))
