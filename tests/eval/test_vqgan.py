"""The VQGAN that comes with the package, measured on the clips that come with it."""

import json
from importlib import resources

import matplotlib.image
import pytest

from lwm.cli.eval import eval_vqgan
from lwm.errors import UserError
from lwm.vqgan.checkpoint import SHIPPED, read_vqgan

CLIPS = str(resources.files("lwm") / "assets" / "clips")
OPTIONS = {"frames": 64, "count": 5, "max_frames": 2, "background": "white"}


@pytest.mark.slow
@pytest.mark.representative
def test_the_shipped_vqgan_shows_the_shipped_clips(tmp_path, capsys):
    pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    eval_vqgan("vqgan-64", (CLIPS,), out=tmp_path / "out", **OPTIONS)
    scores = json.loads((tmp_path / "out" / "report.json").read_text())
    assert scores["frames"] == 64
    assert scores["psnr"] > 24
    assert scores["psnr_foreground"] > 21
    assert scores["codes_used"] > 0.6
    sheet = matplotlib.image.imread(tmp_path / "out" / "sheet.png")
    assert sheet.shape[:2] == (2 * 64 + 2, 8 * 64 + 7 * 2)
    assert f"{scores['psnr']:.2f} dB" in capsys.readouterr().out


def test_it_is_small_and_says_what_it_is():
    config = read_vqgan("vqgan-64").config
    assert (config.resolution, config.codes, config.tokens_per_frame) == (64, 1024, 64)
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 8e6
    assert "license: apache-2.0" in (SHIPPED / "README.md").read_text()


def test_what_is_no_vqgan_or_no_picture(tmp_path):
    (tmp_path / "x.txt").write_text("no picture")
    with pytest.raises(UserError, match="vqgan-65 does not exist; give LWM's vqgan file"):
        eval_vqgan("vqgan-65", (CLIPS,), out=tmp_path, **OPTIONS)
    with pytest.raises(UserError, match=r"nothing can be read of a held-out set: .*x\.txt"):
        eval_vqgan("vqgan-64", (str(tmp_path / "x.txt"),), out=tmp_path, **OPTIONS)
    with pytest.raises(UserError, match=r"x\.txt/out cannot be written: Not a directory"):
        eval_vqgan("vqgan-64", (CLIPS,), out=tmp_path / "x.txt" / "out", **OPTIONS)
