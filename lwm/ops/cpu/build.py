"""Compiles the C++ kernels for this processor at their first use, and registers them with XLA.

A compiled library is kept in the user's cache, under a name made of all that it depends on. The
names of XLA's targets hold the same digest, so that a program of JAX's compilation cache never
meets other code than it was made for.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import threading
from pathlib import Path

import jax
import jaxlib

from lwm.folders import cache_folder

SOURCES = Path(__file__).parent / "kernels"
TARGETS = (
    *("product_columns", "product_rows"),
    *("attend_float32", "attend_bfloat16", "attend_int8"),
    *("read_float32", "read_bfloat16", "read_int8"),
)
"""Functions of the library that XLA calls."""

_LOG = logging.getLogger(__name__)
_COMPILERS = "c++", "g++", "clang++"
_TIMEOUT = 600
_lock = threading.Lock()
_registered: list[dict[str, str]] = []


class _Unavailable(Exception):
    """Says why there are no kernels."""


def target(name: str) -> str | None:
    """Returns the name under which XLA knows one of `TARGETS`; None if plain JAX is to be used.

    That is so where `LWM_CPU_KERNELS=0`, on accelerators, and where nothing can be compiled, which
    is said once. `LWM_CPU_ARCH` is the processor to compile for; by default, this one.
    """
    if os.environ.get("LWM_CPU_KERNELS") == "0" or jax.default_backend() != "cpu":
        return None
    with _lock:
        if not _registered:
            _registered.append(_register())
        return _registered[0].get(name)


def is_expected() -> bool:
    """Returns whether `target` will have kernels on a CPU, without compiling them."""
    if os.environ.get("LWM_CPU_KERNELS") == "0":
        return False
    if _registered:
        return bool(_registered[0])
    try:
        _compiler()
    except _Unavailable:
        return False
    return True


def _register() -> dict[str, str]:
    try:
        library, digest = _load()
    except _Unavailable as reason:
        _LOG.warning(
            "lwm computes with XLA's slower products for small weights, since %s; "
            "LWM_CPU_KERNELS=0 silences this",
            reason,
        )
        return {}
    names = {name: f"lwm_{name}_{digest}" for name in TARGETS}
    for name, registered in names.items():
        function = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(registered, function, platform="cpu")
    return names


def _load() -> tuple[ctypes.CDLL, str]:
    """Returns the compiled kernels, from the cache if they are there, and their digest."""
    compiler = _compiler()
    command = [compiler, *_flags(), f"-I{jax.ffi.include_dir()}", str(SOURCES / "targets.cc"), "-o"]
    digest = _digest(command)
    try:
        file = _private(cache_folder() / "kernels") / f"{digest}.so"
        if library := _found(file):
            return library, digest
        if not os.access(file.parent, os.W_OK):
            raise PermissionError(f"{file.parent} cannot be written")
    except OSError as error:
        _LOG.warning("lwm compiles its kernels at each start, since %s", error)
        # Gone before it ends: what is loaded stays in memory.
        with tempfile.TemporaryDirectory(prefix="lwm-") as temporary:
            return _compiled(Path(temporary) / "kernels.so", command), digest
    return _compiled(file, command), digest


def _compiler() -> str:
    wanted = os.environ.get("CXX", "").split()
    for name in (*wanted[:1], *_COMPILERS):
        if found := shutil.which(name):
            return found
    raise _Unavailable(
        "there is no C++ compiler here (Debian: apt install g++; Fedora: dnf install gcc-c++; "
        "macOS: xcode-select --install)"
    )


def _flags() -> list[str]:
    arch = os.environ.get("LWM_CPU_ARCH") or "native"
    is_arm = platform.machine().lower() in ("arm64", "aarch64")
    return [
        "-O3",
        f"-m{'cpu' if is_arm and arch == 'native' else 'arch'}={arch}",
        *("-std=c++17", "-shared", "-fPIC", "-pthread", "-w"),
    ]


def _digest(command: list[str]) -> str:
    """Returns a digest of all that the compiled library depends on."""
    parts = [path.name.encode() + path.read_bytes() for path in sorted(SOURCES.iterdir())]
    parts += ["\0".join(command).encode(), jaxlib.__version__.encode(), _processor()]
    return hashlib.sha256(b"\0\0".join(parts)).hexdigest()[:16]


def _processor() -> bytes:
    """Returns the instructions that the processor has; where nothing says so, its name."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
    return b"\n".join(sorted({line for line in lines if line.startswith((b"flags", b"Features"))}))


def _private(folder: Path) -> Path:
    """Makes a folder in which only this user can write.

    Raises:
        OSError: It cannot be made, or others can write there.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"others than you can write to {folder}")
    return folder


def _found(file: Path) -> ctypes.CDLL | None:
    """Loads a library that this user compiled before; None if there is none that is whole."""
    try:
        found = file.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid():
            return ctypes.CDLL(str(file))
    except OSError:
        pass
    return None


def _compiled(file: Path, command: list[str]) -> ctypes.CDLL:
    """Compiles to a file, which appears whole, and loads it."""
    partial = file.with_name(f"{file.stem}.{os.getpid()}.partial")
    try:
        _run([*command, str(partial)])
        # Loaded before it is put in place: a broken one is never found there.
        library = ctypes.CDLL(str(partial))
        for name in TARGETS:
            getattr(library, name)
        with partial.open("rb") as written:  # or a crash could leave less than the whole
            os.fsync(written.fileno())
        os.replace(partial, file)
    except (OSError, AttributeError) as error:
        raise _Unavailable(f"the compiled kernels cannot be loaded ({error})") from None
    finally:
        partial.unlink(missing_ok=True)
    return library


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _Unavailable(f"{command[0]} does not run ({error})") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if "error" in line]
        reason = lines[0] if lines else f"status {done.returncode}"
        raise _Unavailable(f"{command[0]} cannot compile its kernels ({reason})")
