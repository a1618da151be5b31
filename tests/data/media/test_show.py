"""The page of what media became."""

import base64
import html
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from lwm.cli.data import data_show
from lwm.data.media.inputs import open_items
from lwm.data.media.read import Sampling
from lwm.data.media.shards import MediaJob, write_media
from lwm.data.media.show import show
from lwm.data.sources import open_source
from lwm.errors import UserError
from lwm.vqgan.checkpoint import read_vqgan
from lwm.vqgan.model import decode_frames
from lwm.vqgan.tokenizer import VisionTokenizer

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
pytest.importorskip("array_record", reason="array_record is not installed")


@pytest.fixture(scope="module")
def shards(tmp_path_factory, draw_vqgan):
    """Stills, clips, a conversation, and three that are bad."""
    folder = tmp_path_factory.mktemp("media")
    vqgan = draw_vqgan(resolution=16, levels=1)
    rng, rows = np.random.default_rng(0), []
    for number in range(9):
        frames = [
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
            for _ in range(1 + 2 * (number % 2))
        ]
        name = f"{number}.gif"
        frames[0].save(folder / name, save_all=True, append_images=frames[1:], duration=500)
        rows.append({"path": name, "caption": f"<b>number {number}</b>"})
    parts = [{"type": "text", "text": "Look: "}, {"type": "image", "path": "0.gif"}]
    talk = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A & B"}]
    rows += [{"messages": talk}, {"path": "2.gif", "question": "What?", "answer": "Dots\ud83d"}]
    rows += [{"path": "<gone>.png"}, {"path": "0.gif", "caption": 3}, {}]
    (folder / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    vision = VisionTokenizer.open(vqgan)
    items = open_items([str(folder / "x.jsonl")])
    sampling = Sampling(resolution=16)
    write_media(MediaJob.of(items, sampling, vision.codebook, folder / "out", 3), vision)
    return folder / "out", vqgan


def pictures(page: str) -> list:
    found = re.findall(r'src="data:image/webp;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in found]


def test_the_page_shows_frames_and_texts(shards, capsys):
    shards, vqgan = shards
    data_show((str(shards),))
    assert capsys.readouterr().out == f"{shards / 'sheet.html'}\n"
    page = (shards / "sheet.html").read_text()
    shown = pictures(page)
    # Frames side by side.
    assert [each.width // 16 for each in shown] == [1, 3, 1, 3, 1, 3, 1, 3, 1, 1, 1]
    assert page.count("--n: 3; --t: 1.50s") == 4
    record = open_source(shards)[0].value
    codes = np.asarray(record["vision"], np.int32).reshape(1, 16, 16)
    grey = decode_frames(read_vqgan(vqgan), codes)[0].mean(-1)
    seen = np.asarray(shown[0].convert("RGB")) / 127.5 - 1
    lost, turned = (np.abs(seen.mean(-1) - each).mean() for each in (grey, grey.T))
    assert lost < turned / 2, "WebP loses some"
    text = html.unescape(re.sub(r"<[^>]*>", "\n", page))
    for each in ("<b>number 8</b>", "Look:", "A & B", "What?", "Dots", "x.jsonl:10", "3 frames"):
        assert each in text, each
    assert "<gone>.png cannot be read: No such file or directory" in text
    assert "x.jsonl:13: caption is not text, but 3" in text
    assert "<b>number" not in page
    assert not re.search(r'(src|href)="(?!data:)', page), "it stands alone"
    assert len(open_source(shards)) == 11, "the page is no shard"


def test_originals_stand_beside_what_the_codes_keep_of_them(shards, tmp_path):
    shards, _ = shards
    files = [str(shards.parent / "x.jsonl")]
    data_show((str(shards),), originals=tuple(files), out=tmp_path / "both.html", count=3)
    page = (tmp_path / "both.html").read_text()
    first, kept, *others = (np.asarray(each.convert("RGB")) for each in pictures(page))
    assert len(others) == 4
    with Image.open(shards.parent / "0.gif") as image:
        frame = np.asarray(image.convert("RGB")).mean(-1)
    lost, turned = (np.abs(first.mean(-1) - each).mean() for each in (frame, frame.T))
    assert lost < turned / 2, "WebP loses some"
    (ratio, *_) = re.findall(r"codes, ([\d.]+) dB", page)
    error = np.square(kept.astype(float) - first).mean()
    assert float(ratio) == pytest.approx(10 * np.log10(255**2 / error), abs=3)


def test_few_are_drawn_evenly(shards, tmp_path):
    page = show(shards[0], out=tmp_path / "few.html", count=3).read_text()
    names = re.findall(r'class="name">([^<\n]+)', page)
    assert names == ["0.gif", "5.gif", "2.gif"], "the first, the middle and the last"
    assert "3 of 11 items" in page


def test_only_the_vqgan_that_made_the_codes_will_do(shards, tmp_path, draw_vqgan):
    shards, vqgan = shards
    moved = shutil.copytree(shards, tmp_path / "moved")
    facts = json.loads((moved / "media.json").read_text())
    facts["codebook"]["source"] = str(tmp_path / "gone")
    (moved / "media.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="which made the codes, does not exist; give its path"):
        show(moved)
    assert show(moved, vqgan=vqgan, count=1).exists()
    with pytest.raises(UserError, match="is not the VQGAN that made the codes of"):
        show(moved, vqgan=draw_vqgan(resolution=16, levels=1, codes=65))
    with pytest.raises(UserError, match="vqgan-64 is not the VQGAN that made the codes of"):
        show(moved, vqgan=Path("vqgan-64"))
    with pytest.raises(UserError, match="count 0 must be at least 1"):
        show(moved, count=0)
    with pytest.raises(UserError, match="has no complete set of media shards"):
        show(tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        show(moved, vqgan=vqgan, out=tmp_path / "no" / "x.html", count=1)
