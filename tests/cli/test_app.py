import io
import json
import os
import re
import subprocess
import sys

import jax
import pytest

from lwm.cli.app import COMMANDS, main
from lwm.cli.common import print_table, print_text, record_command
from lwm.cli.data import _print_reasons, _warn

ENVIRONMENT = os.environ | {"COLUMNS": "100"}


def lwm(*arguments, **changes):
    return subprocess.run(
        [sys.executable, "-c", "from lwm.cli.app import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=ENVIRONMENT | changes,
        stdin=subprocess.DEVNULL,
    )


def test_help_and_import_need_no_jax():
    code = (
        "import sys, lwm, lwm.cli.app; assert not {'jax', 'numpy', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    run = lwm("--help")
    assert run.returncode == 0
    for command in ("demo", "chat", "models"):
        assert command in run.stdout


def test_models_train_and_write_without_optional_packages():
    """As on machines that only compute: no command line, no data formats, no server."""
    absent = [
        "tyro",
        "prompt_toolkit",
        "grain",
        "array_record",
        "pyarrow",
        "datasets",
        "tensorboardX",
        "wandb",
    ]
    code = (
        f"import sys; sys.modules |= dict.fromkeys({absent})\n"
        "import lwm.train.run, lwm.recipes, lwm.generate.chat, lwm.loading, lwm.ops.ring"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_public_names_can_be_had():
    import lwm

    for name in lwm.__all__:
        assert getattr(lwm, name) is not None
    assert set(lwm.__all__) == set(dir(lwm))
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = lwm.absent


def test_models_lists_where_each_is(tmp_path):
    run = lwm("models", LWM_CACHE=str(tmp_path), HF_HOME=str(tmp_path))
    assert run.returncode == 0
    lines = run.stdout.splitlines()
    assert len(lines) == 1 + 13
    assert lines[1].split() == ["smollm2-135m-instruct", "text", "8K", "1.0e5", "Apache-2.0", "-"]


def test_letters_that_a_terminal_lacks_are_replaced(tmp_path):
    folder = tmp_path / "modèles" / "LWM-Text-128K"
    folder.mkdir(parents=True)
    for name in ("params", "tokenizer.model"):
        (folder / name).touch()
    run = lwm("models", LWM_CACHE=str(folder.parent), PYTHONIOENCODING="ascii")
    assert run.returncode == 0, run.stderr
    assert "mod?les/LWM-Text-128K" in run.stdout


def test_a_reader_that_goes_is_no_fault():
    theirs, ours = os.pipe()
    os.close(theirs)
    code = "from lwm.cli.app import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", code, "models"], stdout=ours, stderr=subprocess.PIPE, check=False
    )
    os.close(ours)
    assert (run.returncode, run.stderr) == (1, b"")


ASK = ["chat", "smollm2-135m-instruct", "Hi"]
MISTAKES = {
    "missing file": (["chat", "{tmp}/none.gguf", "Hi"], "none.gguf does not exist"),
    "unknown name": (["chat", "smolm2-135m-instruct", "Hi"], "did you mean smollm2-135m-instruct"),
    "no model": (["chat", "{tmp}/binary", "Hi"], "is no model"),
    "empty folder": (["chat", "{tmp}/empty", "Hi"], "neither config.json nor params"),
    "truncated": (["chat", "{tmp}/cut.gguf", "Hi"], "cut.gguf is truncated"),
    "unreachable hub": (["chat", "someone/model", "Hi"], "someone/model"),
    "LWM's model": (["chat", "LWM-Text-1M", "Hi"], "LargeWorldModel/LWM-Text-1M-Jax is not in"),
    "no parameters": (["chat", "params::{tmp}/none", "Hi"], "none is no file; give that of LWM's"),
    "no folder to write": (["convert", "{tmp}/empty", "{tmp}/new"], "holds no model"),
    "type of a folder": (
        ["convert", "tiny-vision", "{tmp}/new", "--dtype", "q8_0"],
        "--dtype int8 is for --to gguf; for hf give float32 or bfloat16",
    ),
    "shards of one file": (
        ["convert", "tiny-vision", "{tmp}/m.gguf", "--to", "gguf", "--shard-gb", "1"],
        "--shard-gb is for --to hf; gguf has all weights in one file",
    ),
    "size of shards": (
        ["convert", "tiny-vision", "{tmp}/new", "--shard-gb", "0"],
        "--shard-gb 0 must be above 0 and at most 1000",
    ),
    "folder like a file": (
        ["convert", "tiny-vision", "{tmp}/new.gguf"],
        "new.gguf is named like a GGUF file; give --to gguf, or name a folder",
    ),
    "scores without a card": (
        ["convert", "tiny-vision", "{tmp}/m.gguf", "--to", "gguf", "--reports", "{tmp}"],
        "--reports is for a model card, which a GGUF file has not",
    ),
    "a kind that LWM lacks": (
        ["convert", "tiny-vision", "{tmp}/new", "--to", "lwm-original"],
        "the original LWM has no place for fewer key/value heads than heads",
    ),
    "reports of a file": (
        ["convert", "tiny-vision", "{tmp}/m.gguf", "--to", "gguf", "--reports", "{tmp}"],
        "--reports is for a model card",
    ),
    "file like a folder": (
        ["convert", "tiny-vision", "{tmp}/new", "--to", "gguf"],
        "new does not end in .gguf",
    ),
    "plan": (["plan", "LWM-Text-1M", "--mesh", "1,1,3,1"], "which does not divide by tp 3"),
    "missing document": ([*ASK, "--document", "{tmp}/none"], "none does not exist"),
    "binary document": ([*ASK, "--document", "{tmp}/binary"], "UTF-8"),
    "unwritable folder": (["demo", "--out", "{tmp}/binary/below"], "cannot be written"),
    "seed": ([*ASK, "--seed", "-1"], "seed -1 must be from 0"),
    "negative length": ([*ASK, "--max-tokens", "-1"], "max_tokens -1"),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\0\0\0")
    return tmp_path


@pytest.fixture
def here(monkeypatch, capsys, tmp_path):
    """Runs a command in this process, without a hub, as importing all anew takes two seconds."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lwm", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code, *capsys.readouterr()

    yield run
    # Commands that open models have their own.
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_input_is_one_clear_line_and_exit_code_2(mistake, folder, here):
    arguments, says = MISTAKES[mistake]
    code, out, error = here(*(argument.replace("{tmp}", str(folder)) for argument in arguments))
    assert (code, out) == (2, "")
    assert error.startswith("lwm: ")
    assert error.count("\n") == 1
    assert says in error


def test_a_gguf_file_is_written_without_the_vqgan(tmp_path, monkeypatch, capsys):
    file = tmp_path / "m.gguf"
    arguments = ["convert", "tiny-vision", str(file), "--to", "gguf", "--dtype", "q8_0"]
    monkeypatch.setattr(sys, "argv", ["lwm", *arguments])
    main()
    out, error = capsys.readouterr()
    assert out == f"{file}\n"
    left_out, size, following = error.splitlines()
    assert left_out.endswith("vqgan-64 has no place in a GGUF file")
    assert re.fullmatch(r"5\.\d MB, weights in int8, written in \d+ s", size)
    assert following == f"Talk to it: lwm chat {file}"
    assert 5e6 < file.stat().st_size < 6e6


HOSTILE = "a\x1b[31m\nlwm: \u202eforged\x9b"
ESCAPED = r"a\x1b[31m\nlwm: \u202eforged\x9b"


def test_control_characters_of_a_file_name_are_shown_as_escapes(tmp_path, here):
    code, out, error = here("chat", f"{tmp_path}/{HOSTILE}.gguf", "Hi")
    assert (code, out) == (2, "")
    assert error.startswith(f"lwm: {tmp_path}/{ESCAPED}.gguf does not exist")
    assert error.count("\n") == 1


def test_listings_escape_control_characters(capsys):
    print_table([("NAME", "SIZE"), (HOSTILE, "5")])
    _print_reasons([f"{HOSTILE}, line 1: no text"], 1)
    _warn(HOSTILE)
    shown = capsys.readouterr()
    lines = [
        "NAME".ljust(len(ESCAPED)) + "  SIZE",
        f"{ESCAPED}  5",
        f"  {ESCAPED}, line 1: no text",
    ]
    assert shown.out.splitlines() == lines
    assert shown.err == f"lwm: {ESCAPED}\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_obeys_no_text_of_a_model(terminal, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdout", shown)
    print_text("a\x1b]52;c;eA==\x07\tb\r\nשלום 👩‍🚀", end="")
    alone = "a]52;c;eA==\tb\nשלום 👩‍🚀"
    assert shown.getvalue() == (alone if terminal else "a\x1b]52;c;eA==\x07\tb\r\nשלום 👩‍🚀")


FINISHED = {
    "text.jsonl": ["generate", "text", "none", "The sea", "--out", "{tmp}/text.jsonl"],
    "a.png": ["generate", "image", "none", "a cat", "-o", "{tmp}/a.png"],
    "a-2.webp": ["generate", "video", "none", "a cat", "--n", "2", "-o", "{tmp}/a.webp"],
    "vision/report.json": ["eval", "vision", "none", "--out", "{tmp}/vision"],
    "vqgan/sheet.png": ["eval", "vqgan", "none", "{tmp}", "--out", "{tmp}/vqgan"],
    "both.svg": ["plot", "{tmp}/one", "{tmp}/two", "--out", "{tmp}/both.svg"],
    "page.html": ["data", "show", "{tmp}/shards", "--out", "{tmp}/page.html"],
    "demo/index.html": ["demo", "--model", "none", "--out", "{tmp}/demo"],
}


@pytest.mark.parametrize("name", FINISHED)
def test_finished_work_is_not_replaced_unasked(name, tmp_path, here):
    (file := tmp_path / name).parent.mkdir(exist_ok=True)
    file.write_text("a day's work")
    arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in FINISHED[name]]
    code, out, error = here(*arguments)
    assert (code, out) == (2, "")
    assert error == (
        f"lwm: {file} exists; choose another --out, or give --overwrite to replace it\n"
    )
    _, _, error = here(*arguments, "--overwrite")
    assert "exists" not in error.replace("exists on", "")
    assert file.read_text() == "a day's work"


def test_bad_input_is_the_same_to_a_shell(folder):
    run = lwm("chat", folder / "none.gguf", "Hi")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == f"lwm: {folder / 'none.gguf'} does not exist\n"


@pytest.mark.parametrize("arguments", [["fly"], ["chat"], [*ASK, "--tempratur", "1"]])
def test_misuse_of_the_command_line_is_exit_code_2(arguments, here):
    code, out, error = here(*arguments)
    assert (code, out) == (2, "")
    assert error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chta", "x"], "lwm has no 'chta'; did you mean chat or data?"),
        (["eval", "nedle"], "lwm eval has no 'nedle'; did you mean needle or visual-needle?"),
        (["train", "tiny-visoin"], "lwm train has no 'tiny-visoin'; did you mean tiny-vision?"),
    ],
)
def test_misspelt_commands_are_met_with_the_nearest(arguments, said, here):
    assert here(*arguments) == (2, "", f"lwm: {said}\n")


def test_the_module_is_the_command_and_says_its_version():
    import lwm as package

    run = subprocess.run([sys.executable, "-m", "lwm", "--version"], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, f"lwm {package.__version__}\n")


def test_where_a_model_is_loaded_is_one_group_of_options(here):
    code, out, _ = here("chat", "--help-all")
    assert code == 0
    assert "load options" in out
    assert "load.given" not in out
    for option in ("--mesh", "--config", "--theta", "--context"):
        assert f" {option} " in out


def test_devices_that_are_not_there_are_named_in_one_line():
    run = lwm("plan", "LWM-Text-1M", JAX_PLATFORMS="cuda")
    assert run.returncode == 2
    assert run.stderr.startswith("lwm: there is no device for cuda")
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize("platform", ["tpu", "rocm", "metal"])
def test_missing_devices_of_any_kind_are_one_line_in_any_command(monkeypatch, capsys, platform):
    def models():
        reason = f"Unable to initialize backend '{platform}': no\nsuch thing (you may need to)"
        raise RuntimeError(reason)

    monkeypatch.setitem(COMMANDS, "models", models)
    monkeypatch.setattr(sys, "argv", ["lwm", "models"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert f"no device for {platform} (no); " in capsys.readouterr().err


def test_a_report_says_by_which_command_it_was_made(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lwm", "eval", "vision", "a model", "--count", "3"])
    report = tmp_path / "report.json"
    report.write_text('{"pairs": 3, "command": "an earlier one"}')
    record_command(report)
    assert json.loads(report.read_text()) == {
        "pairs": 3,
        "command": "lwm eval vision 'a model' --count 3",
    }
