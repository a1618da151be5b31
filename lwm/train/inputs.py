"""Inputs of a run, recorded in `inputs.json`: it goes on with the same files, or is refused."""

from collections.abc import Mapping
from pathlib import Path

from lwm.errors import UserError
from lwm.files import read_versioned, replacing, write_versioned
from lwm.fingerprint import fingerprints, require_same

INPUTS = "inputs.json"
VERSION = 1


def keep_inputs(files: Mapping[str, Path], folder: Path, *, resumed: bool) -> None:
    """Records the inputs of a run; refuses others when it goes on.

    A run of an earlier version has no record, goes on and gets one.

    Args:
        files: Inputs by name.
        folder: The folder of the run.
        resumed: Whether the run goes on.

    Raises:
        UserError: An input is not the one of the start; it is named.
    """
    record, found = folder / INPUTS, fingerprints(files)
    if resumed and record.exists():
        before = read_versioned(record, VERSION).get("files")
        if not isinstance(before, dict):
            raise UserError(f"{record} is damaged; remove it if the inputs are those of the start")
        remedy = (
            f"restore it, start in another folder with --out, or remove {record} if this change is "
            "meant"
        )
        require_same(before, found, remedy, paths=files)
        return
    with replacing(record) as partial:
        write_versioned({"files": found}, partial, VERSION)
