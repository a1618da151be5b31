"""A file of answers that is stopped at any byte, and files that are not ours."""

import pytest

from lwm.errors import UserError
from lwm.eval.results import Results, read_header
from lwm.files import make_folder, write_bytes

HEADER = {"evaluation": "test", "config": {"lengths": (1, 2), "seed": 3}}
ROWS = [{"i": i, "said": "héllo\u2028\n"} for i in range(3)]


def filled(path, header=HEADER):
    results = Results(path, header)
    for row in ROWS[len(results.rows) :]:
        results.append(row)
    return results


def test_any_torn_end_is_dropped(tmp_path):
    path = tmp_path / "results.jsonl"
    assert filled(path).rows == ROWS
    whole = path.read_bytes()
    for kept in [*range(0, len(whole), 9), len(whole) - 1]:
        path.write_bytes(whole[:kept])
        known = Results(path, HEADER).rows
        assert known == ROWS[: max(0, whole[:kept].count(b"\n") - 1)]
        filled(path)
        assert path.read_bytes() == whole


def test_results_of_another_evaluation_are_refused_and_kept(tmp_path):
    path = tmp_path / "results.jsonl"
    filled(path)
    before = path.read_bytes()
    other = HEADER | {"config": {"lengths": (1, 2), "seed": 4}}
    with pytest.raises(UserError, match=r"another evaluation \(config\.seed was 3, is 4\); choose"):
        Results(path, other)
    assert path.read_bytes() == before


@pytest.mark.parametrize("data", [b"notes", b"notes\n", b"\xff\xfe", b"[1]\n", b'{"a": 1}'])
def test_a_file_that_is_not_ours_is_left_alone(tmp_path, data):
    path = tmp_path / "results.jsonl"
    path.write_bytes(data)
    with pytest.raises(UserError, match="choose another folder"):
        Results(path, HEADER)
    assert path.read_bytes() == data


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "results.jsonl"
    filled(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"{\n", *lines[2:]]))
    with pytest.raises(UserError, match="line 2"):
        Results(path, HEADER)


def test_what_cannot_be_written_is_said(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for attempt in (
        lambda: make_folder(file),
        lambda: make_folder(file / "under"),
        lambda: Results(file / "results.jsonl", HEADER),
        lambda: write_bytes(tmp_path / "absent" / "x", b""),
    ):
        with pytest.raises(UserError, match="cannot be written"):
            attempt()


def test_fields_that_an_earlier_version_did_not_record_are_added(tmp_path):
    path = tmp_path / "results.jsonl"
    filled(path)
    more = HEADER | {"config": HEADER["config"] | {"new": 1}, "files": {"a": "1 bytes"}}
    assert Results(path, more).rows == ROWS
    with pytest.raises(UserError, match=r"files\.a was \"1 bytes\", is \"2 bytes\""):
        Results(path, more | {"files": {"a": "2 bytes"}})
    (tmp_path / "none.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="another evaluation"):
        Results(tmp_path / "none.jsonl", HEADER)


def test_bytes_of_a_path_that_are_no_text_cost_no_results(tmp_path):
    path, header = tmp_path / "results.jsonl", HEADER | {"model": "m\udcff"}
    Results(path, header).append({"answer": "\ud83d"})
    assert Results(path, header).rows == [{"answer": "\ud83d"}]


def test_a_grid_grows_and_nothing_else_changes(tmp_path):
    path = tmp_path / "results.jsonl"
    header = HEADER | {"grid": {"lengths": [2, 8], "tasks": ["b"], "rounds": 3}}
    filled(path, header)
    grown = Results(path, HEADER | {"grid": {"lengths": [4, 2], "tasks": ["a"], "rounds": 2}})
    union = {"lengths": [2, 4, 8], "tasks": ["a", "b"], "rounds": 3}
    assert (grown.header["grid"], grown.rows) == (union, ROWS)
    assert read_header(path) == grown.header
    again = path.read_bytes()
    assert Results(path, header).header == grown.header
    assert path.read_bytes() == again
    with pytest.raises(UserError, match=r"config\.seed was 3, is 4"):
        Results(path, {**header, "config": {"lengths": (1, 2), "seed": 4}})
    assert path.read_bytes() == again
