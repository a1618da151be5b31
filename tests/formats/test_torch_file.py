"""Files of torch.save: read as PyTorch does, and hostile or damaged ones refused in one line."""

import argparse
import contextlib
import pickle
import zipfile

import numpy as np
import pytest

from lwm.errors import UserError
from lwm.formats.torch_file import is_torch, open_torch

NUMBERS = np.arange(6, dtype=np.float32).reshape(2, 3)
BYTES = NUMBERS.tobytes()


def push(value) -> bytes:
    """Opcodes that push a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def tensor(*, kind="Float", key="0", count=6, offset=0, shape=(2, 3), strides=(3, 1)) -> bytes:
    """Opcodes that push a tensor, as torch.save writes them."""
    storage = push("storage") + b"ctorch\n%sStorage\n" % kind.encode()
    storage = b"(" + storage + push(key) + push("cpu") + push(count) + b"tQ"
    rest = push(offset) + push(shape) + push(strides) + push(False) + b")"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"


@pytest.fixture
def write(tmp_path):
    """Writes a file of one tensor called `w`; the rest of the pickle and the parts may differ."""

    def make(pushed=None, *, data=BYTES, parts=(), compression=zipfile.ZIP_STORED):
        made = b"\x80\x02}" + push("w") + (tensor() if pushed is None else pushed) + b"s."
        with zipfile.ZipFile(tmp_path / "file.pt", "w", compression) as archive:
            for name, content in (("data.pkl", made), ("data/0", data), *parts):
                archive.writestr(f"top/{name}", content)
        return tmp_path / "file.pt"

    return make


def test_tensors_are_views_of_the_file(write):
    found = open_torch(write())
    assert found.shapes == {"w": (2, 3)}
    np.testing.assert_array_equal(found["w"], NUMBERS)
    assert not found["w"].flags.writeable
    turned = open_torch(write(tensor(offset=1, shape=(2, 2), strides=(1, 3))))
    np.testing.assert_array_equal(turned["w"], NUMBERS.ravel()[[[1, 4], [2, 5]]])
    assert open_torch(write(tensor(shape=(0, 4), strides=(4, 1))))["w"].shape == (0, 4)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pushed": b"cos\nsystem\n(" + push("true") + b"tR"}, r"asks for os\.system, which is n"),
        ({"pushed": b"cbuiltins\neval\n(" + push("1") + b"tR"}, r"asks for builtins\.eval"),
        ({"pushed": tensor(shape=(3, 3))}, r"a tensor of \(3, 3\) exceeds its part"),
        ({"pushed": tensor(offset=1)}, "exceeds its part"),
        ({"pushed": tensor(shape=(1 << 40, 1), strides=(0, 0))}, "exceeds its part"),
        ({"pushed": tensor(strides=(-3, 1))}, "calls torch._utils._rebuild_tensor_v2 as neither"),
        ({"pushed": tensor(kind="Double")}, "part '0' has 24 bytes"),
        ({"pushed": tensor(key="1")}, "it lacks part 'data/1'"),
        ({"pushed": tensor(key="../0")}, r"it lacks part 'data/\.\./0'"),
        ({"pushed": tensor(count=1 << 60)}, "part '0' has 24 bytes"),
        ({"compression": zipfile.ZIP_DEFLATED}, "is compressed"),
        ({"parts": [("code/__torch__.py", b"")]}, "is TorchScript, which holds code"),
        ({"parts": [("byteorder", b"big")]}, "of a big-endian machine"),
        ({"parts": [("more/data.pkl", b"")]}, "is no file of torch.save"),
    ],
)
def test_hostile_and_foreign_files_are_refused(changes, says, write):
    path = write(**changes)
    with pytest.raises(UserError, match=says) as caught:
        open_torch(path)["w"]
    assert str(caught.value).startswith(f"{path} ")
    assert str(caught.value).isprintable()


def test_damaged_files_are_refused(write, tmp_path):
    path = write()
    whole = path.read_bytes()
    for size in (0, 3, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"file\.pt is damaged, or no file of torch\.save"):
            open_torch(path)
    # Any byte may change: all that is left is read, or refused.
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        with contextlib.suppress(UserError):
            found = open_torch(path)
            assert all(found[name].nbytes <= len(whole) for name in found)
    with pytest.raises(UserError, match="none cannot be read: No such file"):
        open_torch(tmp_path / "none")


@pytest.mark.torch
def test_what_pytorch_writes_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    linear = torch.nn.Linear(3, 2)
    tensors = {
        "plain": torch.randn(3, 4),
        "turned": torch.randn(4, 5).bfloat16().t(),
        "part": torch.arange(6)[2:5],
        "half": torch.randn(7).half(),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "flags": torch.tensor([True, False]),
    }
    saved = {"all": tensors, "more": [linear.state_dict()], "p": torch.nn.Parameter(torch.ones(2))}
    path = tmp_path / "file.pt"
    torch.save(saved | {"args": argparse.Namespace(lr=0.1), "step": 3}, path)
    assert is_torch(path)
    found = open_torch(path)
    assert set(found) == {*(f"all.{name}" for name in tensors), "more.0.weight", "more.0.bias", "p"}
    for name, wanted in tensors.items():
        np.testing.assert_array_equal(
            found[f"all.{name}"].astype(np.float64), wanted.double().numpy()
        )
    np.testing.assert_array_equal(found["more.0.weight"], linear.weight.detach().numpy())

    torch.save(saved, path, _use_new_zipfile_serialization=False)
    assert is_torch(path)
    with pytest.raises(UserError, match=r"is of PyTorch before 1\.6"):
        open_torch(path)
    torch.save(linear, path)
    with pytest.raises(UserError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        open_torch(path)
