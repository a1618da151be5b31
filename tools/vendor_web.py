"""Fetches the libraries of the server's page from npm, by name, version and checksum.

    python tools/vendor_web.py

`lwm/serve/web/vendor/packages.json` lists them. To take a newer version, change it there, leave its
checksum empty, run this, and look at the difference.
"""

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "lwm/serve/web/vendor"
LISTED, LICENSES = FOLDER / "packages.json", FOLDER / "LICENSES.txt"


def main() -> int:
    """Writes the files and their licences; returns an exit status."""
    entries = json.loads(LISTED.read_text())
    licences = []
    for entry in entries:
        for number, package in enumerate((entry["package"], *entry.get("contains", ()))):
            files = _files(package)
            names = [name for name in files if name.upper().startswith("LICENSE")]
            text = "\n\n".join(files[name].decode().strip() for name in sorted(names))
            origin = package if number == 0 else f"code of {package.partition('@')[0]} within"
            licences.append(f"{entry['file']}: {origin}\n\n{text}\n")
            if number == 0 and not _kept(entry, files[entry["path"]]):
                print(f"{package} {entry['path']} has another checksum", file=sys.stderr)
                return 1
    LICENSES.write_text(("\n" + "=" * 80 + "\n\n").join(licences))
    LISTED.write_text(json.dumps(entries, indent=2) + "\n")
    return 0


def _files(package: str) -> dict[str, bytes]:
    """Returns the contents of a package by their paths within it."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--pack-destination", folder, package]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).iterdir()
        with tarfile.open(archive) as packed:
            found = {}
            for member in packed.getmembers():
                content = packed.extractfile(member)
                if content is not None:
                    found[member.name.partition("/")[2]] = content.read()
            return found


def _kept(entry: dict[str, str], content: bytes) -> bool:
    """Writes a file, unless its checksum is another one than that of its entry."""
    found = hashlib.sha256(content).hexdigest()
    if entry["sha256"] not in ("", found):
        return False
    entry["sha256"] = found
    (FOLDER / entry["file"]).write_bytes(content)
    return True


if __name__ == "__main__":
    sys.exit(main())
