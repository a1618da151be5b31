"""A VQGAN: frames to codes of a learned codebook, and back (Esser et al. 2021, arXiv 2012.09841).

Axes: B or N frames, H × W pixels, h × w codes, C colour channels, Z `z_channels`, E width of a
code, K entries of the codebook.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from lwm.errors import UserError
from lwm.media.pixels import from_bytes
from lwm.sharding import AXES, make_mesh, manual, on_mesh
from lwm.vqgan.config import Search, VQGANConfig
from lwm.vqgan.layers import Conv
from lwm.vqgan.networks import Decoder, Encoder

SEARCHED = 1 << 22
"""Distances from latents to codes computed at a time, at most; at least one latent per frame."""

AT_ONCE = 256 * 256
"""Pixels that a CPU processes at a time, at most, but at least a frame. This is a sixth faster than
whole batches, as caches are reused, and needs less memory."""


class Quantizer(eqx.Module):
    """Vector quantisation with a codebook (van den Oord et al. 2017, arXiv 1711.00937)."""

    codebook: Float[Array, "K E"]
    search: Search = eqx.field(static=True, default="nearest")
    unit_codes: bool = eqx.field(static=True, default=False)

    @classmethod
    def init(cls, config: VQGANConfig, *, key: PRNGKeyArray) -> "Quantizer":
        """Samples entries uniformly between -1/K and 1/K."""
        most = 1 / config.codes
        codebook = jr.uniform(key, (config.codes, config.code_dim), minval=-most, maxval=most)
        return cls(codebook, config.search, config.unit_codes)

    def nearest(self, latents: Float[Array, "B h w E"]) -> Int[Array, "B h w"]:
        """Returns the first code of those nearest to each latent, in float32, as `search` says.

        Latents that are searched by cosine must have unit length, as those of `VQGAN.latents`.
        """
        batch, height, width, dim = latents.shape
        codebook = self.codebook.astype(jnp.float32)
        if self.search == "cosine":
            codebook = scaled_to_unit(codebook)
        squares = jnp.sum(jnp.square(codebook), axis=1)

        def search(part: Float[Array, "B n E"]) -> Int[Array, "B n"]:
            products = jnp.einsum("bne,ke->bnk", part, codebook, precision="highest")
            costs = -products if self.search == "product" else squares - 2 * products
            return jnp.argmin(costs, axis=-1).astype(jnp.int32)

        count = height * width
        pieces = min(count, -(-batch * count * len(codebook) // SEARCHED))
        while count % pieces:
            pieces += 1
        flat = latents.astype(jnp.float32).reshape(batch, count, dim)
        cut = jnp.moveaxis(flat.reshape(batch, pieces, -1, dim), 1, 0)
        found = jnp.moveaxis(jax.lax.map(search, cut), 0, 1)
        return found.reshape(batch, count).reshape(batch, height, width)

    def vectors(self, codes: Int[Array, "B h w"]) -> Float[Array, "B h w E"]:
        """Returns the vector of each code; NaN for a code outside the codebook."""
        there = jax.typeof(codes).sharding
        where = NamedSharding(there.mesh, P(*there.spec, None))
        found = self.codebook.at[codes].get(mode="fill", fill_value=jnp.nan, out_sharding=where)
        return scaled_to_unit(found) if self.unit_codes else found


def scaled_to_unit(vectors: Float[Array, "... E"]) -> Float[Array, "... E"]:
    """Returns vectors scaled to length 1; those of length 0 stay."""
    vectors = vectors.astype(jnp.float32)
    # The root of a sum of 0 would have a gradient of NaN.
    squares = jnp.maximum(jnp.sum(jnp.square(vectors), axis=-1, keepdims=True), 1e-24)
    return vectors / jnp.sqrt(squares)


class VQGAN(eqx.Module):
    """Encodes frames in [-1, 1] as codes, and decodes them.

    The sides of a frame are multiples of `config.downsampling`. Frames are independent and may be
    sharded over any axes of the mesh. The steps are separate methods, as training needs the
    latents, and gradients that bypass the choice of codes.
    """

    encoder: Encoder
    to_code: Conv
    quantizer: Quantizer
    from_code: Conv | None
    decoder: Decoder | None
    config: VQGANConfig = eqx.field(static=True)

    @classmethod
    def init(cls, config: VQGANConfig, *, key: PRNGKeyArray) -> "VQGAN":
        """Samples all weights, replicated on each device."""
        encoder, into, book, out, decoder = jr.split(key, 5)
        both = config.decoder
        return cls(
            encoder=Encoder.init(config, key=encoder),
            to_code=Conv.init(config.z_channels, config.code_dim, 1, key=into),
            quantizer=Quantizer.init(config, key=book),
            from_code=Conv.init(config.code_dim, config.z_channels, 1, key=out) if both else None,
            decoder=Decoder.init(config, key=decoder) if both else None,
            config=config,
        )

    def latents(self, pixels: Float[Array, "B H W C"]) -> Float[Array, "B h w E"]:
        """Returns the vectors to be quantised, in float32; of unit length for a search by cosine.

        Raises:
            UserError: The size of the frames does not divide into codes.
        """
        self.config.grid(*pixels.shape[1:3])
        exact = contextlib.nullcontext()
        # So close that rounding would change codes, even if JAX's default asks for it.
        if self.config.search == "product":
            exact = jax.default_matmul_precision("highest")
        with exact:
            encoded = self.encoder(pixels.astype(self.config.encoder_dtype))
            found = self.to_code(encoded.astype(jnp.float32))
        return scaled_to_unit(found) if self.config.search == "cosine" else found

    def quantize(self, latents: Float[Array, "B h w E"]) -> Int[Array, "B h w"]:
        """Returns the code of each latent."""
        return self.quantizer.nearest(latents)

    def encode(self, pixels: Float[Array, "B H W C"]) -> Int[Array, "B h w"]:
        """Returns the codes of frames in [-1, 1].

        Raises:
            UserError: See `latents`.
        """
        return self.quantize(self.latents(pixels))

    def pixels(self, vectors: Float[Array, "B h w E"]) -> Float[Array, "B H W C"]:
        """Decodes vectors of codes to frames, in float32 and not clipped.

        Raises:
            UserError: There is no decoder.
        """
        self.config.require_decoder()
        assert self.from_code is not None
        assert self.decoder is not None
        return self.decoder(self.from_code(vectors.astype(self.config.dtype))).astype(jnp.float32)

    def decode(self, codes: Int[Array, "B h w"]) -> Float[Array, "B H W C"]:
        """Decodes codes to frames in [-1, 1], in float32.

        Raises:
            UserError: There is no decoder.
        """
        return jnp.clip(self.pixels(self.quantizer.vectors(codes)), -1, 1)


def encode_frames(
    model: VQGAN,
    frames: UInt8[np.ndarray, "N H W C"] | Float[np.ndarray, "N H W C"],
    *,
    batch: int = 4,
) -> Int[np.ndarray, "N h w"]:
    """Encodes any number of frames on all devices of the model's mesh.

    Args:
        model: A VQGAN whose weights are replicated on each device.
        frames: Bytes, or floats in [-1, 1].
        batch: Frames that each device encodes at a time.

    Raises:
        UserError: The size of the frames does not divide into codes, or a float is out of range.
    """
    rows, columns = model.config.grid(*frames.shape[1:3])
    codes = np.empty((len(frames), rows, columns), np.int32)
    for at, part in _parts(frames, model, batch):
        if part.dtype != np.uint8 and not np.abs(part).max() <= 1:
            raise UserError("frames hold numbers outside [-1, 1]; give bytes, or scale them")
        done = _spread(_encode_some, model, part)
        codes[at : at + len(part)] = done[: len(frames) - at]
    return codes


def decode_frames(
    model: VQGAN, codes: Int[np.ndarray, "N h w"], *, batch: int = 4
) -> Float[np.ndarray, "N H W C"]:
    """Decodes any number of frames; see `encode_frames`.

    Raises:
        UserError: A code is not in the codebook, or there is no decoder.
    """
    config = model.config
    config.require_decoder()
    sides = [config.downsampling * side for side in codes.shape[1:]]
    frames = np.empty((len(codes), *sides, config.channels), np.float32)
    for at, part in _parts(codes, model, batch):
        strange = part[(part < 0) | (part >= config.codes)]
        if strange.size:
            raise UserError(
                f"{strange[0]} is not a code of a codebook of {config.codes}; "
                "give codes only, without end-of-frame ids"
            )
        done = _spread(VQGAN.decode, model, part.astype(np.int32))
        frames[at : at + len(part)] = done[: len(codes) - at]
    return frames


def _parts(rows: np.ndarray, model: VQGAN, batch: int) -> Iterator[tuple[int, np.ndarray]]:
    """Splits rows into batches of one size; the last is padded with zeros."""
    devices = mesh_of(model).size
    assert batch > 0
    step = devices * max(1, min(batch, -(-len(rows) // devices)))
    for at in range(0, len(rows), step):
        part = rows[at : at + step]
        yield at, np.pad(part, [(0, step - len(part))] + [(0, 0)] * (rows.ndim - 1))


def _spread(run: Callable[[VQGAN, Array], Array], model: VQGAN, rows: np.ndarray) -> np.ndarray:
    mesh = mesh_of(model)
    with jax.set_mesh(mesh):
        return np.asarray(_on_devices(run, model, jax.device_put(rows, on_mesh(mesh, P(AXES)))))


@functools.partial(jax.jit, static_argnums=0)
def _on_devices(run: Callable[[VQGAN, Array], Array], model: VQGAN, rows: Array) -> Array:
    def in_turn(model: VQGAN, rows: Array) -> Array:
        side = model.config.downsampling if rows.ndim == 3 else 1  # these are codes
        pixels = side**2 * rows.shape[1] * rows.shape[2]
        few = min(len(rows), max(1, AT_ONCE // pixels))
        while len(rows) % few:
            few -= 1
        parts = rows.reshape(-1, few, *rows.shape[1:])
        done = jax.lax.map(functools.partial(run, model), parts)
        return done.reshape(-1, *done.shape[2:])

    def local(model: VQGAN, rows: Array) -> Array:
        return jax.lax.platform_dependent(model, rows, cpu=in_turn, default=run)

    return manual(local, in_specs=(P(), P(AXES)), out_specs=P(AXES))(model, rows)


def _encode_some(model: VQGAN, frames: Array) -> Array:
    is_bytes = frames.dtype == jnp.uint8
    return model.encode(from_bytes(frames) if is_bytes else frames.astype(jnp.float32))


def mesh_of(model: VQGAN) -> Mesh:
    """Returns the mesh of a VQGAN's devices, one for weights that were put on no mesh."""
    sharding = model.quantizer.codebook.sharding
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
        return sharding.mesh
    return make_mesh(devices=list(sharding.device_set))
