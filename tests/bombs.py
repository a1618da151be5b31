"""Files that lie about themselves, or that are small and ask for much."""

import io
import struct
import zlib
from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av", reason="PyAV is not installed")
Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


def pictures(count):
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    whole = np.asarray(Image.fromarray(noise).resize((96, 64)))
    return [np.roll(whole, 5 * i, 1) for i in range(count)]


def encode(kind, codec, pixels="yuv420p", **options):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.height, stream.width, stream.pix_fmt = 64, 96, pixels
        for array in pictures(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array)))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def chunk(kind, data):
    """Returns a part of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *, rows=0, extra=b""):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + extra
    data = chunk(b"IDAT", zlib.compress(bytes((3 * width + 1) * rows)))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


def gif(width, height, frames):
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    timing = b"\x21\xf9\x04\x04\x0a\x00\x00\x00"
    pixel = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return screen + (timing + pixel) * frames + b";"


def webp(width, height):
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    data = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + size + bytes(100)
    return b"RIFF" + struct.pack("<I", len(data)) + data


def pngs_as_video(inside):
    """Returns a video of 64 × 64, whose frames are of what size they like."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mov") as container:
        stream = container.add_stream("png", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "rgb24"
        for number in range(3):
            packet = av.Packet(inside)
            packet.pts = packet.dts = number
            packet.stream, packet.time_base = stream, Fraction(1, 10)
            packet.is_keyframe = True
            container.mux(packet)
    return buffer.getvalue()


def many_scans(side, count):
    """Returns a progressive JPEG, whose last pass over the picture comes again and again."""
    Image.new("L", (side, side), 128).save(buffer := io.BytesIO(), "JPEG", progressive=True)
    data = buffer.getvalue()
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:]


def icon(inside):
    """Returns an icon that claims to be small."""
    entry = struct.pack("<BBBBHHII", 32, 32, 0, 0, 1, 32, len(inside), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + inside


def lying(data, box, count):
    """Overwrites how many entries a table of an MP4 has."""
    place = data.index(box) + (12 if box == b"stsz" else 8)
    return data[:place] + struct.pack(">I", count) + data[place + 4 :]
