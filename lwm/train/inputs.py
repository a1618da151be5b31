"""Inputs of a run, recorded in `inputs.json`: it goes on with the same files, or is refused.

The lineage of the model that it starts from is recorded as well, for model cards.
"""

from collections.abc import Mapping
from pathlib import Path

from lwm.convert.card_facts import lineage_of
from lwm.errors import UserError
from lwm.files import make_folder, read_versioned, replacing, write_versioned
from lwm.fingerprint import fingerprints, require_same
from lwm.formats.run_facts import LINEAGE, write_lineage
from lwm.formats.run_folder import SETTINGS
from lwm.hub.catalog import KnownModel
from lwm.processes import first_alone

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


def keep_lineage(source: Path, known: KnownModel | None, folder: Path) -> None:
    """Records the lineage of the model that a run starts from, if that is not done yet.

    Args:
        source: File or folder of the model.
        known: Its entry, if it is a known model.
        folder: The folder of the run.

    Raises:
        UserError: The folder cannot be written.
    """
    with first_alone() as is_first:
        # A folder without settings has a run that was refused, perhaps with another model.
        is_kept = (folder / SETTINGS).exists() and (folder / LINEAGE).exists()
        if is_first and not is_kept:
            make_folder(folder)
            write_lineage(lineage_of(source, known), folder)
