import json
import os
import subprocess
import sys
import threading

import pytest

from lwm.data.prompts import read_prompts
from lwm.data.sources import open_source
from lwm.errors import UserError
from lwm.files import exclusive, make_folder, parse_json, replacing, require_writable, write_bytes
from lwm.tokenizer.message import json_of
from lwm.train.monitor.run_log import RunLog


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


def test_a_folder_can_be_waited_for(tmp_path):
    order = []

    def wait():
        with exclusive(tmp_path, wait=True):
            order.append("second")

    waiting = threading.Thread(target=wait)
    with exclusive(tmp_path):
        waiting.start()
        waiting.join(0.1)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]


def test_a_killed_process_gives_its_folder_back(tmp_path):
    code = "import sys, pathlib, lwm.files as files, time\n"
    code += "with files.exclusive(pathlib.Path(sys.argv[1])): print(flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, tmp_path / "out"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        busy = "out is being written by another process; wait for it, or choose another folder"
        with pytest.raises(UserError, match=busy), exclusive(tmp_path / "out"):
            pass
        other.kill()
    with exclusive(tmp_path / "out"):
        pass
    assert (tmp_path / "out").is_dir()


def test_a_folder_made_for_nothing_is_removed(tmp_path):
    with pytest.raises(KeyError), exclusive(tmp_path / "out"):
        raise KeyError
    assert not list(tmp_path.iterdir())
    with exclusive(tmp_path / "out"):
        (tmp_path / "out" / "a").touch()
    assert (tmp_path / "out" / "a").exists()


DEEP = "[" * 5000 + "]" * 5000


@pytest.mark.parametrize("text", [DEEP, '{"a": ' * 101 + "1" + "}" * 101, "[" * 200_000])
def test_deep_json_is_refused(text):
    for form in (text, text.encode()):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(form)


@pytest.mark.parametrize("text", ["[" * 100 + "]" * 100, f'"{DEEP}"', json.dumps([[]] * 500)])
def test_json_that_is_not_deep_is_parsed(text):
    assert parse_json(text) == json.loads(text)


def test_readers_of_json_lines_refuse_deep_ones(tmp_path):
    (file := tmp_path / "a.jsonl").write_text(f'{{"prompt": {DEEP}}}\n')
    (tmp_path / "log.jsonl").write_text(f"{DEEP}\n{{}}\n")
    for read in (
        lambda: read_prompts(file),
        lambda: open_source(file)[0],
        lambda: RunLog.read(tmp_path, "run"),
        lambda: json_of(DEEP, "tools"),
    ):
        with pytest.raises(UserError):
            read()
