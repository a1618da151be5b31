"""Bytes read as a pickle."""

import pytest

from lwm.errors import UserError
from lwm.formats.pickles import read_pickle


@pytest.fixture
def read(tmp_path):
    """Reads bytes as a file."""

    def run(data: bytes):
        (path := tmp_path / "file.pkl").write_bytes(data)
        return read_pickle(path)

    return run


@pytest.fixture
def refusal(tmp_path):
    """Returns what is said of bytes, in one short line that names the file; or None."""

    def run(data: bytes) -> str | None:
        (path := tmp_path / "file.pkl").write_bytes(data)
        try:
            read_pickle(path)
        except UserError as error:
            said = str(error)
            assert said.startswith(f"{path} ")
            assert said.isprintable()
            assert len(said) < len(str(path)) + 250
            return said.removeprefix(f"{path} ")
        return None

    return run
