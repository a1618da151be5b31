"""Damages small valid files of nine kinds and opens them: each opens, or is refused in one line.

    python tests/mutations.py --count 1000
    python tests/mutations.py --only gguf:17

Each file is opened in a process of its own, forked from this one, which never imports JAX. Such a
process must end without a traceback or a signal, within a limit of processor time and of memory.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# Threads of other libraries do not survive a fork.
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

# Both are imported once and for all, and not again in each process that is forked.
import gguf  # noqa: E402, F401
import small_files  # noqa: E402
from damage import (  # noqa: E402
    damaged_bytes,
    damaged_json,
    damaged_lines,
    damaged_template,
    damaged_values,
)
from PIL import Image  # noqa: E402
from safetensors.numpy import save  # noqa: E402

from lwm.convert.huggingface import read_config  # noqa: E402
from lwm.data.check import check  # noqa: E402
from lwm.data.fields import RecordEncoder  # noqa: E402
from lwm.data.format import ExampleFormat  # noqa: E402
from lwm.data.media.inputs import open_items  # noqa: E402
from lwm.data.media.items import Bad  # noqa: E402
from lwm.data.media.read import Sampling, read_item  # noqa: E402
from lwm.data.sources import open_source  # noqa: E402
from lwm.errors import UserError  # noqa: E402
from lwm.files import read_json  # noqa: E402
from lwm.formats.gguf import read_gguf  # noqa: E402
from lwm.formats.safetensor_files import open_safetensors  # noqa: E402
from lwm.media.frames import read_frames  # noqa: E402
from lwm.text import printable  # noqa: E402
from lwm.tokenizer import jinja  # noqa: E402
from lwm.tokenizer.template import render_chat  # noqa: E402
from lwm.tokenizer.tokenizer import Tokenizer  # noqa: E402
from lwm.tokens import TokenSpace  # noqa: E402

SECONDS = 10
"""Processor time of one process, and of what it starts."""
WAIT = 60
"""Seconds after which a process is ended."""
MEMORY = 2 << 30
"""Bytes that a process may use more than the one that it is forked from."""
LONGEST = 2100
"""Characters of a message, besides those of paths."""
TEXT = "Hello, world! 12345 naïve 日本 😀 \n\n  don't"


# Kinds

Damage = Callable[[bytes, random.Random], bytes]


class Kind(NamedTuple):
    """Files of a kind: what they are, how they are damaged, and how they are opened."""

    files: Callable[[], dict[str, bytes]]
    damage: dict[str, Damage]
    read: Callable[[Path, str], object]


def tokenizer_files() -> dict[str, bytes]:
    """Returns the folder of a model without weights."""
    return {
        "tokenizer.json": small_files.tokenizer_json(),
        "tokenizer_config.json": json.dumps(small_files.tokenizer_config()).encode(),
        "config.json": json.dumps(small_files.CONFIG).encode(),
        "generation_config.json": b'{"eos_token_id": [257], "pad_token_id": 256}',
    }


def template_files() -> dict[str, bytes]:
    """Returns the folder of a model with a template in a file of its own."""
    return tokenizer_files() | {"chat_template.jinja": small_files.TEMPLATE.encode()}


def use(tokenizer: Tokenizer) -> None:
    """Encodes, decodes and renders."""
    tokenizer.decode(tokenizer.encode(TEXT))
    chat = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "Yes."}]
    render_chat([*chat, chat[0]], tokenizer)


def use_config(folder: Path, name: str) -> None:
    """Reads the configuration, and the tokenizer beside it."""
    use(Tokenizer.open(folder))
    read_config(read_json(folder / "config.json"))


def gguf_files() -> dict[str, bytes]:
    """Returns a GGUF file."""
    return {"m.gguf": small_files.gguf(small_files.gguf_metadata())}


def damaged_gguf(data: bytes, rng: random.Random) -> bytes:
    """Damages the bytes, or the metadata."""
    if rng.random() < 0.5:
        return damaged_bytes(data, rng)
    return small_files.gguf(damaged_values(small_files.gguf_metadata(), rng))


def use_gguf(folder: Path, name: str) -> None:
    """Reads configuration, weights and tokenizer of a GGUF file."""
    opened = read_gguf(folder / "m.gguf")
    read_config(opened.config)
    for name in opened.tensors:
        opened.tensors[name]
    use(Tokenizer.open(folder))


def safetensors_files() -> dict[str, bytes]:
    """Returns two files of weights and their index."""
    import numpy as np

    parts = {
        f"model-0000{number}-of-00002.safetensors": {
            f"layer.{number}.{name}": np.ones((2, 3), kind) for name, kind in names.items()
        }
        for number, names in enumerate([{"a": "f4", "b": "f2"}, {"c": "i4"}], 1)
    }
    index = {"weight_map": {name: file for file, each in parts.items() for name in each}}
    made = {file: save(tensors) for file, tensors in parts.items()}
    return made | {"model.safetensors.index.json": json.dumps(index).encode()}


def damaged_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Damages the header as JSON, or the bytes."""
    if rng.random() < 0.5:
        return damaged_bytes(data, rng)
    size = int.from_bytes(data[:8], "little")
    header = damaged_json(data[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def use_safetensors(folder: Path, name: str) -> None:
    """Reads all tensors."""
    tensors = open_safetensors(folder)
    for name in tensors:
        tensors[name]


def record_files() -> dict[str, bytes]:
    """Returns records of every form beside a tokenizer."""
    lines = "\n".join(map(json.dumps, small_files.RECORDS))
    return tokenizer_files() | {"data.jsonl": lines.encode()}


def use_records(folder: Path, name: str) -> None:
    """Encodes all records; bad ones are counted."""
    encoder = RecordEncoder(
        tokenizer=Tokenizer.open(folder),
        tokens=TokenSpace.of(258, 16),
        format=ExampleFormat(tokens_per_frame=4),
    )
    for reason in check(open_source(folder / "data.jsonl"), encoder).reasons:
        require_line(reason, folder)


def archive_files() -> dict[str, bytes]:
    """Returns archives of images and videos, with a list."""
    return {name: small_files.archive(name, listed()) for name in ("a.zip", "a.tar")}


def listed() -> bytes:
    """Returns the list in an archive."""
    return "\n".join(map(json.dumps, small_files.listed())).encode()


def damaged_archive(name: str) -> Damage:
    """Returns what damages the bytes of an archive, or its list."""

    def damage(data: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return damaged_bytes(data, rng)
        return small_files.archive(name, damaged_lines(listed(), rng))

    return damage


def use_items(folder: Path, name: str) -> None:
    """Reads all images and videos of an archive; bad ones are named."""
    items = open_items([str(folder / name)])
    for number in range(len(items)):
        found = read_item(items, number, Sampling(resolution=16))
        if isinstance(found, Bad):
            require_line(found.reason, folder)


def media_files() -> dict[str, bytes]:
    """Returns images and videos."""
    pictures = [(kind, {}) for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")]
    pictures += [(kind, {"moving": 1}) for kind in ("GIF", "WEBP", "PNG")]
    made = {
        f"{number}.{kind.lower()}": small_files.picture(kind, **options)
        for number, (kind, options) in enumerate(pictures)
    }
    videos = [("mp4", "libx264"), ("webm", "libvpx"), ("matroska", "ffv1"), ("avi", "mpeg4")]
    return made | {f"v.{kind}": small_files.video(kind, codec) for kind, codec in videos}


def use_media(folder: Path, name: str) -> None:
    """Reads frames."""
    read_frames(folder / name, resolution=16, max_frames=4)


_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "config.json", "chat_template.jinja")
KINDS = {
    "gguf": Kind(gguf_files, {"m.gguf": damaged_gguf}, use_gguf),
    "tokenizer": Kind(tokenizer_files, {_TOKENIZER[0]: damaged_json}, use_config),
    "tokenizer_config": Kind(tokenizer_files, {_TOKENIZER[1]: damaged_json}, use_config),
    "config": Kind(tokenizer_files, {_TOKENIZER[2]: damaged_json}, use_config),
    "template": Kind(template_files, {_TOKENIZER[3]: damaged_template}, use_config),
    "safetensors": Kind(
        safetensors_files,
        {
            "model-00001-of-00002.safetensors": damaged_safetensors,
            "model.safetensors.index.json": damaged_json,
        },
        use_safetensors,
    ),
    "records": Kind(record_files, {"data.jsonl": damaged_lines}, use_records),
    "archives": Kind(
        archive_files, {name: damaged_archive(name) for name in ("a.zip", "a.tar")}, use_items
    ),
    "media": Kind(media_files, {}, use_media),
}


# Processes


class Fault(Exception):
    """A message that is not one short line."""


def require_line(text: str, folder: Path) -> None:
    """Refuses a message of several lines, or a very long one."""
    short = printable(text.replace(str(folder), ""))  # as the command line prints it
    if "\n" in short or len(short) > LONGEST or not short.strip():
        raise Fault(f"{len(short)} characters: {short[:2000]!r}")


def run(name: str, number: int, seed: int, files: dict[str, bytes], folder: Path) -> int:
    """Damages and opens one file; returns 0 if it opens, 2 if it is refused, 1 for a fault.

    With a negative number it is not damaged, and has to open.
    """
    kind, rng = KINDS[name], random.Random(f"{seed} {name} {number}")
    chosen = rng.choice(sorted(kind.damage or files))
    folder.mkdir()
    try:
        for other, data in files.items():
            (folder / other).write_bytes(data)
        if number >= 0:
            damage = kind.damage.get(chosen, damaged_bytes)
            (folder / chosen).write_bytes(damage(files[chosen], rng))
        kind.read(folder, chosen)
    except UserError as error:
        try:
            require_line(str(error), folder)
        except Fault:
            traceback.print_exc()
            return 1
        print(error)
        return 2 if number >= 0 else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def child(name: str, number: int, seed: int, files: dict[str, bytes], folder: Path) -> None:
    """Opens one file in a forked process; never returns."""
    code = 1
    try:
        with open(f"{folder}.log", "wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        sys.stdout.reconfigure(errors="backslashreplace")  # pyrefly: ignore
        resource.setrlimit(resource.RLIMIT_CPU, (2 * SECONDS, 2 * SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(WAIT)
        code = run(name, number, seed, files, folder)
        jinja._stop()  # the time of its process counts as well
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


class Outcome(NamedTuple):
    """Outcome of one file."""

    what: str
    """`opened`, `refused` or `fault`."""
    why: str
    seconds: float
    memory: int


def outcome(status: int, usage: resource.struct_rusage, log: Path, base: int) -> Outcome:
    """Judges a process that has ended."""
    text = log.read_text(errors="replace")
    seconds, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 - base
    why = text.strip()
    what = {0: "opened", 2 << 8: "refused"}.get(status, "fault")
    if os.WIFSIGNALED(status):
        why = f"{signal.Signals(os.WTERMSIG(status)).name}\n{why}"
    elif seconds > SECONDS or memory > MEMORY:
        what, why = "fault", f"{seconds:.1f} s, {memory >> 20} MiB\n{why}"
    return Outcome(what, why, seconds, memory)


def outcomes(name: str, numbers: list[int], seed: int, jobs: int) -> Iterator[tuple[int, Outcome]]:
    """Opens the damaged files of a kind, several at a time."""
    running: dict[int, tuple[int, Path]] = {}
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with tempfile.TemporaryDirectory() as top:
        files = apart(KINDS[name].files, Path(top))
        left = list(numbers)
        while left or running:
            if left and len(running) < jobs:
                number = left.pop(0)
                folder = Path(top) / str(number)
                pid = os.fork()
                if pid == 0:
                    child(name, number, seed, files, folder)
                running[pid] = number, folder
                continue
            pid, status, usage = os.wait4(-1, 0)
            number, folder = running.pop(pid)
            log = Path(f"{folder}.log")
            yield number, outcome(status, usage, log, base)
            shutil.rmtree(folder, ignore_errors=True)
            log.unlink()


def apart(files: Callable[[], dict[str, bytes]], folder: Path) -> dict[str, bytes]:
    """Makes files in another process, since what makes them may start threads."""
    made = folder / "valid"
    made.mkdir()
    if (pid := os.fork()) == 0:
        try:
            for name, data in files().items():
                (made / name).write_bytes(data)
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.waitpid(pid, 0)
    return {path.name: path.read_bytes() for path in made.iterdir()}


def main() -> int:
    """Prints a table of outcomes, and every fault; returns 1 if there is one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=20, help="files of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--only", help="one file, such as gguf:17, and what is said of it")
    given = parser.parse_args()
    Image.init()
    warnings.simplefilter("ignore")  # users see what goes on, not warnings about it
    kinds, numbers = given.kinds, list(range(-3, given.count))
    if given.only:
        name, _, number = given.only.partition(":")
        kinds, numbers = [name], [int(number)]
    is_faulty = False
    print(f"{'kind':18}opened  refused  faults  most CPU  most memory")
    for name in kinds:
        found = sorted(outcomes(name, numbers, given.seed, given.jobs))
        count = {
            what: sum(each.what == what and number >= 0 for number, each in found)
            for what in ("opened", "refused", "fault")
        }
        seconds = max(each.seconds for _, each in found)
        memory = max(each.memory for _, each in found)
        print(
            f"{name:18}{count['opened']:6}  {count['refused']:7}  {count['fault']:6}  "
            f"{seconds:6.2f} s  {max(0, memory) >> 20:7} MiB",
            flush=True,
        )
        shown = found if given.only else [each for each in found if each[1].what == "fault"]
        for number, each in shown:
            what = f"--seed {given.seed} --only {name}:{number}"
            print(f"\n{what} {each.what}: {each.why}", file=sys.stderr, flush=True)
        is_faulty |= any(each.what == "fault" for _, each in found)
    return int(is_faulty)


if __name__ == "__main__":
    sys.exit(main())
