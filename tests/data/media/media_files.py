"""Images and what describes them, laid out in every way that they come in."""

import csv
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lwm.data.media.inputs import open_items
from lwm.data.media.read import Sampling, read_item

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
parquets = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

SMALL = Sampling(resolution=8, max_frames=2)
CAPTIONS = {"a.png": "a dot", "sub/b.gif": "two, “dots”", "sub/c.x.jpg": "éclair"}


def encoded(seed: int, kind: str = "PNG", frames: int = 1, side: int = 12) -> bytes:
    rng = np.random.default_rng(seed)
    made = [Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(frames)]
    buffer = io.BytesIO()
    options = {"save_all": True, "append_images": made[1:], "duration": 100} if frames > 1 else {}
    made[0].save(buffer, kind, **options)
    return buffer.getvalue()


def lay(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


MEDIA: dict[str, Any] = {
    "a.png": encoded(0),
    "sub/b.gif": encoded(1, "GIF", 3),
    "sub/c.x.jpg": encoded(2, "JPEG"),
}
TEXTS: dict[str, Any] = {
    f"{name.rpartition('.')[0]}.txt": f"{text}\n" for name, text in CAPTIONS.items()
}
ROWS = [{"path": name, "caption": text} for name, text in CAPTIONS.items()]


def jsonl(rows: list) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    return "\n".join(lines)


def table(rows: list[dict], delimiter: str = ",") -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def renamed(rows: list[dict], column: str) -> list[dict]:
    return [{column: row["path"], "caption": row["caption"]} for row in rows]


def zipped(folder: Path, files: dict[str, bytes | str]) -> Path:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return folder / "x.zip"


def tarred(folder: Path, files: dict[str, bytes | str]) -> Path:
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "x.tar", "w") as file:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return folder / "x.tar"


def read(*inputs: Path | str, sampling: Sampling = SMALL) -> list:
    items = open_items([str(each) for each in inputs])
    items = pickle.loads(pickle.dumps(items))
    return [read_item(items, number, sampling) for number in range(len(items))]


def parquet_of(rows: list[dict], path: Path) -> Path:
    parquets.write_table(pyarrow.Table.from_pylist(rows), path)
    return path
