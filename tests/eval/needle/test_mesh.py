"""Questions to a model whose cache is spread over several devices."""

import json

import pytest

from lwm.cli import main


@pytest.mark.slow
def test_four_devices_give_the_answers_of_one(tmp_path, monkeypatch):
    found = []
    for mesh in ("1,1,1,1", "1,1,1,4"):
        out = tmp_path / mesh
        grid = ["--lengths", "512", "1024", "--depths", "0", "50", "100", "--rounds", "1"]
        given = ["lwm", "eval", "needle", "tiny-vision", *grid, "--mesh", mesh, "--out", str(out)]
        monkeypatch.setattr("sys.argv", given)
        main()
        lines = (out / "results.jsonl").read_text().splitlines()[1:]
        rows = [json.loads(line) for line in lines]
        found.append(sorted(rows, key=lambda row: (row["context_length"], row["depth_percent"])))
    assert len(found[0]) == 6
    assert len({row["response"] for row in found[0]}) > 1
    assert found[0] == found[1]
