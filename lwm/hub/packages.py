"""Packages of known digests, fetched from the package index by pip or uv without running code."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lwm.errors import UserError

_DOWNLOAD = ("download", "--no-deps", "--quiet", "--disable-pip-version-check", "--no-input")
_DOWNLOAD += ("--retries", "2")
_ONLY_WHEELS = ("--only-binary", ":all:")
# pip asks the build system of a source release for its name and version. This one, in place of
# setuptools, answers from the file PKG-INFO, and leaves `setup.py` alone.
_ONLY_SOURCES = ("--no-binary", ":all:", "--no-build-isolation", "--use-pep517")
_BUILD_SYSTEM = '''\
"""Stands in for setuptools, and runs no code of a package."""
import email.parser
import pathlib


class __legacy__:
    def prepare_metadata_for_build_wheel(folder, settings=None):
        text = pathlib.Path("PKG-INFO").read_text(encoding="utf-8", errors="replace")
        known = email.parser.HeaderParser().parsestr(text)
        name, version = known["Name"], known["Version"]
        made = pathlib.Path(folder, f"{name.replace('-', '_')}-{version}.dist-info")
        made.mkdir()
        text = f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"
        (made / "METADATA").write_text(text, encoding="utf-8")
        return made.name
'''
_PIP = ("pip==25.3", "9655943313a94722b7774661c21049070f6bbb0a1516bf02f7c8d5d9201514cd")


def install_wheel(requirement: str, sha256: str, folder: Path) -> None:
    """Puts a binary package into a folder: packed by pip, or installed by uv.

    Raises:
        UserError: There is none of this digest, or neither pip nor uv.
    """
    listed = _listed({requirement: sha256}, folder)
    if _has_pip():
        _run([*_pip(), *_DOWNLOAD, *_ONLY_WHEELS, "--dest", folder, *listed], requirement, folder)
    else:
        _uv_install(requirement, listed, folder)


def download_sources(releases: Mapping[str, str], folder: Path) -> None:
    """Puts source releases into a folder, as they are, by pip or by a pip that uv fetches.

    Args:
        releases: Digests by requirement. The releases name no build system of their own.
        folder: The folder.

    Raises:
        UserError: There are none of these digests, or neither pip nor uv.
    """
    names, path = " and ".join(releases), folder / "code"
    system = path / "setuptools"
    system.mkdir(parents=True)
    (system / "__init__.py").touch()
    (system / "build_meta.py").write_text(_BUILD_SYSTEM, encoding="utf-8")
    if not _has_pip():
        _uv_install(names, _listed(dict([_PIP]), path), path)
    listed = _listed(releases, folder)
    command = [*_pip(), *_DOWNLOAD, *_ONLY_SOURCES, "--dest", folder, *listed]
    above = os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH")]))
    _run(command, names, folder, PYTHONPATH=above)


def _has_pip() -> bool:
    return importlib.util.find_spec("pip") is not None


def _pip() -> list[str]:
    return [sys.executable, "-m", "pip"]


def _uv_install(names: str, listed: Sequence[str | Path], folder: Path) -> None:
    if not (uv := shutil.which("uv")):
        raise UserError(f"fetching {names} needs pip or uv; neither is installed")
    command = [uv, "pip", "install", "--no-deps", "--quiet", "--python", sys.executable]
    command += ["--no-build", "--require-hashes", "--target", str(folder)]
    _run([*command, *listed], names, folder)


def _listed(packages: Mapping[str, str], folder: Path) -> list[str | Path]:
    """Returns the arguments that name packages with their digests, in a file."""
    lines = [f"{name} --hash=sha256:{sha256}\n" for name, sha256 in packages.items()]
    listed = folder / "requirements.txt"
    listed.write_text("".join(lines), encoding="utf-8")
    return ["--requirement", listed]


def _run(command: Sequence[str | Path], names: str, folder: Path, **variables: str) -> None:
    # TMPDIR keeps partial downloads in the folder that is watched and removed.
    variables = {**os.environ, "TMPDIR": str(folder), **variables}
    words = [str(word) for word in command]
    run = subprocess.run(words, capture_output=True, text=True, errors="replace", env=variables)
    if run.returncode:
        lines = [line for line in run.stderr.splitlines() if line.strip()] or ["no reason given"]
        errors = [line for line in lines if line.lstrip().lower().startswith("error:")]
        reason = (errors or lines)[-1].strip()
        raise UserError(
            f"{names} could not be fetched from the package index ({reason}); "
            "check the network and pip's settings"
        )
