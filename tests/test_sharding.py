import jax
import pytest

from lwm.convert.weights import weight_paths
from lwm.errors import UserError
from lwm.model.config import preset
from lwm.model.llama import check_mesh
from lwm.sharding import make_mesh, own_mesh, parse_mesh, require_batch
from lwm.vqgan.checkpoint import read_vqgan


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("1,1,1,1", (1, 1, 1, 1)),
        ("1,-1,4,1", (1, 2, 4, 1)),
        ("-1,1,1,1", (8, 1, 1, 1)),
        (" 2, 2,2 ,1", (2, 2, 2, 1)),
        ("dp=1,sp=8", (1, 1, 1, 8)),
        ("tp=-1", (1, 1, 8, 1)),
    ],
)
def test_parse_mesh(text, sizes):
    assert parse_mesh(text, 8) == sizes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1,-1,-1,1", "more than one -1"),
        ("1,-1,3,1", "needs a multiple of 3 devices, but there are 8"),
        ("4,4,1,1", "needs 16 devices, but there are 8"),
        ("1,1,1", "cannot be read"),
        ("1,1,0,1", "cannot be read"),
        ("pp=2", "cannot be read"),
        ("tp=2,tp=2", "cannot be read"),
        ("tp=2,1,1,1", "cannot be read"),
        ("four", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_parse_mesh_refuses(text, says):
    with pytest.raises(UserError, match=says):
        parse_mesh(text, 8)


def test_mesh_larger_than_a_processor_names_the_flag_that_splits_it():
    with pytest.raises(UserError, match=r"=16$"):
        make_mesh("4,4,1,1")
    with pytest.raises(UserError, match=r"the one to infer$"):
        parse_mesh("4,4,1,1", 8, platform="gpu")


def test_make_mesh_uses_the_first_devices():
    mesh = make_mesh("1,2,2,1")
    assert dict(mesh.shape) == {"dp": 1, "fsdp": 2, "tp": 2, "sp": 1}
    assert list(mesh.devices.flat) == jax.devices()[:4]


@pytest.mark.parametrize(
    ("mesh", "changes", "says"),
    [
        ("1,1,8,1", {"num_heads": 12, "num_kv_heads": 12}, "12 attention heads .* tp 8"),
        ("1,1,8,1", {"num_heads": 8, "num_kv_heads": 2}, "2 key/value heads .* tp 8"),
        ("1,1,8,1", {"num_heads": 8, "num_kv_heads": 8, "mlp_dim": 100}, "100 feed-forward"),
        ("1,2,1,4", {"dim": 36}, r"36 model dimensions .* fsdp 2 × sp 4 = 8"),
    ],
)
def test_mesh_that_does_not_divide_the_model_names_the_number(mesh, changes, says):
    with pytest.raises(UserError, match=says):
        check_mesh(preset("debug", **changes), make_mesh(mesh))


def test_mesh_that_does_not_divide_the_batch_names_the_number():
    mesh = make_mesh("2,2,1,2")
    require_batch(mesh, rows=8, length=64, block=16)
    with pytest.raises(UserError, match=r"6 rows of the batch .* dp 2 × fsdp 2 = 4"):
        require_batch(mesh, rows=6, length=64)
    with pytest.raises(UserError, match=r"63 tokens of a row .* sp 2"):
        require_batch(mesh, rows=4, length=63)
    with pytest.raises(UserError, match="leave 32 a device, which do not divide by the block 24"):
        require_batch(mesh, rows=4, length=64, block=24)


def test_of_several_processes_each_has_a_mesh_of_its_own(monkeypatch):
    """Where something is looked at or read by one of them alone."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="uses 1 of 8 devices; use all of them"):
        make_mesh()
    assert list(own_mesh().devices.flat) == jax.local_devices()[:1]
    assert "norm.weight" in weight_paths(preset("debug"))
    assert read_vqgan("vqgan-64").config.resolution == 64
