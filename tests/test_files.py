import os

import pytest

from lwm.errors import UserError
from lwm.files import make_folder, replacing, require_writable, write_bytes


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_whole(tmp_path, durable):
    path = tmp_path / "a.txt"
    path.write_text("old")
    mode = path.stat().st_mode
    with replacing(path, durable=durable) as partial:
        partial.write_text("new")
        partial.chmod(0o600)
        assert path.read_text() == "old"
        assert partial.parent == tmp_path
    assert path.read_text() == "new"
    assert path.stat().st_mode == mode
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, UserError])
def test_after_an_error_nothing_is_left(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def stop():
        with replacing(path) as partial:
            partial.write_text("new")
            raise error("ours")

    with pytest.raises(error, match="ours"):
        stop()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(13, "Permission denied"), "Permission denied; choose another place"),
        (RuntimeError("No space left on device\nat 7"), "No space left on device; make room"),
    ],
)
def test_errors_of_the_system_become_one_line(tmp_path, error, says):
    with (
        pytest.raises(UserError, match=f"^{tmp_path}/a cannot be written: {says}") as caught,
        replacing(tmp_path / "a"),
    ):
        raise error
    assert "\n" not in str(caught.value)


def test_places_where_nothing_can_be_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for attempt in (
        lambda: make_folder(file),
        lambda: make_folder(file / "below"),
        lambda: require_writable(tmp_path),
        lambda: require_writable(tmp_path / "none" / "a"),
        lambda: require_writable(file / "a"),
        lambda: write_bytes(tmp_path / "none" / "a", b""),
        lambda: write_bytes(tmp_path, b""),
    ):
        with pytest.raises(UserError, match="cannot be written"):
            attempt()
    require_writable(tmp_path / "a")
    make_folder(tmp_path / "b" / "c")
    assert sorted(os.listdir(tmp_path)) == ["b", "file"]
