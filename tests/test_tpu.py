"""What TPU's compiler says of slices that are not there."""

import os

import pytest

from lwm.errors import UserError
from lwm.sharding import make_mesh

pytest.importorskip("libtpu")
pytestmark = pytest.mark.tpu


@pytest.fixture(scope="module")
def chips():
    """256 chips of TPU v4."""
    from jax.experimental import topologies

    # Several workers may load the library, as none of them uses a chip.
    os.environ |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1"}
    options = {"chip_config_name": "megacore"}
    return topologies.get_topology_desc("v4:8x8x4", platform="tpu", **options).devices


@pytest.mark.parametrize("sizes", ["1,4,16,4", "1,4,8,8", "2,2,16,4", "1,1,32,8"])
def test_axes_longer_than_a_side_of_the_slice_take_parts_of_others(chips, sizes):
    mesh = make_mesh(sizes, chips)
    assert ",".join(map(str, mesh.devices.shape)) == sizes
    assert {device.id for device in mesh.devices.flat} == {device.id for device in chips}


def test_sizes_that_divide_no_side_of_the_slice_are_refused(chips):
    with pytest.raises(
        UserError, match=r"mesh '1,1,3,1' cannot be laid on 3 of 256 devices TPU v4"
    ):
        make_mesh("1,1,3,1", chips)
