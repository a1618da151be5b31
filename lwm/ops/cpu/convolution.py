"""Convolutions and their gradients in forms that are faster on CPU than XLA's own.

On CPU, XLA's float32 convolution is about as fast as its matrix products, so only fewer
multiplications are faster. In bfloat16 it does not use the processor's matrix units, which a matrix
product does if it returns float32. On other platforms XLA's convolution is used. Speeds were
measured on two cores with AVX-512 and AMX.

Letters of shapes: B frames, H × W pixels, I channels in, O channels out, S the side of a kernel.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxtyping import Array, Float

from lwm.ops.cpu.product import product
from lwm.ops.precision import precision_of

Convolution = Callable[[Array, Array], Array]
"""Function of frames and a kernel."""

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_WIDE = 128
"""Minimum channels, in and out, from which fewer multiplications save more than their sums cost."""
_MANY_PIXELS = 32 * 32
"""Minimum pixels per frame from which XLA's gradient of a kernel is slow on CPU, and transforming a
kernel is worth its cost."""


@jax.custom_vjp
def convolve(
    x: Float[Array, "B H W I"], kernel: Float[Array, "S S I O"]
) -> Float[Array, "B H W O"]:
    """Convolves with zero padding; the frame keeps its size. The side S is odd."""
    on_cpu = _convolve_by_xla
    if len(kernel) == 1:
        on_cpu = _convolve_by_pixel
    elif len(kernel) == 3 and min(kernel.shape[2:]) >= _WIDE:
        if x.dtype == jnp.bfloat16:
            on_cpu = convolve_by_rows
        elif x.shape[1] * x.shape[2] >= _MANY_PIXELS:
            on_cpu = convolve_by_tiles
    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=_convolve_by_xla)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return convolve(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    side = len(kernel)
    by_xla = functools.partial(_kernel_gradient_by_xla, side=side)
    if x.shape[1] * x.shape[2] < _MANY_PIXELS:
        return convolve(grad, flipped), by_xla(x, grad)
    by_frame = functools.partial(kernel_gradient_by_frame, side=side)
    return convolve(grad, flipped), jax.lax.platform_dependent(
        x, grad, cpu=by_frame, default=by_xla
    )


convolve.defvjp(_forward, _backward)


def _with_gradient_of(plain: Convolution) -> Callable[[Convolution], Convolution]:
    """Returns a decorator: a fast form of a plain function gets the plain function's gradient."""

    def wrap(fast: Convolution) -> Convolution:
        made = jax.custom_vjp(fast)
        made.defvjp(
            lambda x, kernel: (made(x, kernel), (x, kernel)),
            lambda saved, grad: jax.vjp(plain, *saved)[1](grad),
        )
        return made

    return wrap


def _convolve_repeated(x: Array, kernel: Array) -> Array:
    return convolve(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2), kernel)


def _convolve_halved_by_xla(x: Array, kernel: Array) -> Array:
    return _by_xla(x, kernel, 2, ((0, 1), (0, 1)))


@_with_gradient_of(_convolve_repeated)
def convolve_doubled(
    x: Float[Array, "B h w I"], kernel: Float[Array, "3 3 I O"]
) -> Float[Array, "B H W O"]:
    """Convolves frames of twice the side, in which each pixel of `x` is repeated as 2 × 2."""
    if min(kernel.shape[2:]) < _WIDE:
        return _convolve_repeated(x, kernel)
    return jax.lax.platform_dependent(
        x, kernel, cpu=convolve_by_differences, default=_convolve_repeated
    )


@_with_gradient_of(_convolve_halved_by_xla)
def convolve_halved(
    x: Float[Array, "B H W I"], kernel: Float[Array, "3 3 I O"]
) -> Float[Array, "B h w O"]:
    """Convolves with stride 2; zero padding at the right and bottom only."""
    odd = x.shape[1] % 2 or x.shape[2] % 2
    # In float32 XLA's has two thirds of the speed of products, and copying would cost that third.
    if odd or x.dtype == jnp.float32 or min(kernel.shape[2:]) < _WIDE:
        return _convolve_halved_by_xla(x, kernel)
    return jax.lax.platform_dependent(
        x, kernel, cpu=convolve_halved_by_pairs, default=_convolve_halved_by_xla
    )


def _convolve_by_xla(x: Array, kernel: Array) -> Array:
    return _by_xla(x, kernel, 1, "SAME")


def _by_xla(
    x: Array, kernel: Array, stride: int, padding: str | Sequence[tuple[int, int]]
) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=_LAYOUT,
        precision=precision_of(x, kernel),
    )


def _convolve_by_pixel(x: Array, kernel: Array) -> Array:
    return product("bhwi,io->bhwo", x, kernel[0, 0], aligned=True).astype(x.dtype)


Matrix = tuple[tuple[float | int, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Transform:
    """Winograd transform for `size` outputs of three taps along one axis: matrices by rows."""

    size: int
    of_inputs: Matrix
    of_taps: Matrix
    of_products: Matrix

    def inputs(self, arrays: list[Array]) -> list[Array]:
        return _combined(self.of_inputs, arrays)

    def taps(self, arrays: list[Array]) -> list[Array]:
        return _combined(self.of_taps, arrays)

    def outputs(self, arrays: list[Array]) -> list[Array]:
        return _combined(self.of_products, arrays)


def _combined(matrix: Matrix, arrays: list[Array]) -> list[Array]:
    """Returns a weighted sum of the arrays for each row; each sum is computed only once."""
    sums: list[Array] = []
    for row in matrix:
        first, *others = [w * array for w, array in zip(row, arrays, strict=True) if w]
        sums.append(sum(others, start=first))
    return jax.lax.optimization_barrier(sums)


_A, _B = 2**-0.5, 2**0.5
# The points ±√½ and ±√2 have a third of the error of the usual ±1 and ±2: 2 to 4 times XLA's.
_TRANSFORMS = {
    2: _Transform(
        size=2,
        of_inputs=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, -1, 0, 1)),
        of_taps=((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
        of_products=((1, 1, 1, 0), (0, 1, -1, 1)),
    ),
    4: _Transform(
        size=4,
        of_inputs=(
            (1, 0, -5 / 2, 0, 1, 0),
            (0, -_B, -2, _A, 1, 0),
            (0, _B, -2, -_A, 1, 0),
            (0, -_A, -1 / 2, _B, 1, 0),
            (0, _A, -1 / 2, -_B, 1, 0),
            (0, 1, 0, -5 / 2, 0, 1),
        ),
        of_taps=(
            (1, 0, 0),
            (-2 / 3, -2 / 3 * _A, -1 / 3),
            (-2 / 3, 2 / 3 * _A, -1 / 3),
            (1 / 6, 1 / 6 * _B, 1 / 3),
            (1 / 6, -1 / 6 * _B, 1 / 3),
            (0, 0, 1),
        ),
        of_products=(
            (1, 1, 1, 1, 1, 0),
            (0, _A, -_A, _B, -_B, 0),
            (0, 1 / 2, 1 / 2, 2, 2, 0),
            (0, _A / 2, -_A / 2, 2 * _B, -2 * _B, 1),
        ),
    ),
}


def convolve_by_tiles(
    x: Float[Array, "B H W I"], kernel: Float[Array, "3 3 I O"]
) -> Float[Array, "B H W O"]:
    """Convolves with a quarter or a third of the multiplications (Winograd 1980).

    As in Lavin and Gray 2015 (arXiv 1509.09308): tiles of pixels are transformed along both sides,
    multiplied by transformed taps, and transformed back. Each transform is a sum of whole arrays: a
    product with a small matrix would have to move the channels first. A tile has 4 × 4 pixels, or
    4 × 2 for few pixels, where transforming the taps would take longer than it saves.
    """
    batch, height, width, _ = x.shape
    few = batch * height * width < 16 * max(kernel.shape[2:])
    tall, wide = _TRANSFORMS[4], _TRANSFORMS[2 if few else 4]
    taps = [wide.taps(list(each)) for each in tall.taps(list(kernel))]
    rows = [wide.inputs(_tiles(each, 2, wide)) for each in tall.inputs(_tiles(x, 1, tall))]
    products = jax.lax.optimization_barrier(
        [
            [product("bhwi,io->bhwo", p, tap, aligned=True) for p, tap in zip(*each, strict=True)]
            for each in zip(rows, taps, strict=True)
        ]
    )
    columns = [tall.outputs(list(each)) for each in zip(*products, strict=True)]
    y = [wide.outputs(list(each)) for each in zip(*columns, strict=True)]
    return _woven(y)[:, :height, :width].astype(x.dtype)


def convolve_by_rows(
    x: Float[Array, "B H W I"], kernel: Float[Array, "3 3 I O"]
) -> Float[Array, "B H W O"]:
    """Convolves by a product for each row of the kernel, summed in float32.

    The three columns are concatenated as channels, so that each pixel is copied three times, not
    nine times.
    """
    bits = _bits(x)
    near = (_shifted(bits, 2, -1), bits, _shifted(bits, 2, 1))
    beside = jax.lax.optimization_barrier(jnp.concatenate(near, axis=3))
    columns = jax.lax.bitcast_convert_type(beside, x.dtype)
    sums = jax.lax.optimization_barrier(
        [
            product("bhwi,io->bhwo", columns, row.reshape(-1, row.shape[2]), aligned=True)
            for row in kernel
        ]
    )
    return (_shifted(sums[0], 1, -1) + sums[1] + _shifted(sums[2], 1, 1)).astype(x.dtype)


def convolve_halved_by_pairs(
    x: Float[Array, "B H W I"], kernel: Float[Array, "3 3 I O"]
) -> Float[Array, "B h w O"]:
    """Computes `convolve_halved` by six products, summed in float32. H and W are even.

    Two neighbouring pixels are one pixel of twice the channels, without a copy: the first two taps
    of each row of the kernel see a pair, and the third tap the first half of the next pair.
    """
    batch, height, width, inputs = x.shape
    tall = jnp.pad(_bits(x), ((0, 0), (0, 2), (0, 0), (0, 0)))
    pairs = _reshaped(tall, (batch, height // 2 + 1, 2, width // 2, 2 * inputs))
    rows = jax.lax.optimization_barrier([pairs[:, :-1, 0], pairs[:, :-1, 1], pairs[:, 1:, 0]])
    nexts = jax.lax.optimization_barrier([_shifted(row[..., :inputs], 2, 1) for row in rows])
    multiply = functools.partial(product, "bhwi,io->bhwo", aligned=True)
    sums = []
    for row, after, taps in zip(rows, nexts, kernel, strict=True):
        pair = jax.lax.bitcast_convert_type(row, x.dtype)
        sums.append(multiply(pair, taps[:2].reshape(2 * inputs, -1)))
        sums.append(multiply(jax.lax.bitcast_convert_type(after, x.dtype), taps[2]))
    first, *others = jax.lax.optimization_barrier(sums)
    return sum(others, start=first).astype(x.dtype)


def convolve_by_differences(
    x: Float[Array, "B h w I"], kernel: Float[Array, "3 3 I O"]
) -> Float[Array, "B H W O"]:
    """Convolves repeated pixels without repeating them: with a quarter of the multiplications.

    Along one side, the two outputs of a pixel see it twice and one neighbour once: they are the
    pixel times the sum of all three taps, plus the difference to the neighbour times the first or
    the last tap.
    """
    taps = [_to_differences(each, 1) for each in _to_differences(kernel.astype(jnp.float32), 0)]
    parts = [_differences(each, 2) for each in _differences(x, 1)]
    products = jax.lax.optimization_barrier(
        [
            [
                product("bhwi,io->bhwo", part, tap[0, 0].astype(x.dtype), aligned=True)
                for part, tap in zip(*each, strict=True)
            ]
            for each in zip(parts, taps, strict=True)
        ]
    )
    whole, *others = [(each[0] + each[1], each[0] + each[2]) for each in products]
    y = [[one + other for one, other in zip(whole, each, strict=True)] for each in others]
    return _woven(y).astype(x.dtype)


def _differences(x: Array, axis: int) -> list[Array]:
    wide = x.astype(jnp.float32)
    both = [_shifted(wide, axis, step) - wide for step in (-1, 1)]
    return [x, *jax.lax.optimization_barrier([each.astype(x.dtype) for each in both])]


def _to_differences(kernel: Array, axis: int) -> list[Array]:
    first, middle, last = jnp.split(kernel, 3, axis=axis)
    return [first + middle + last, first, last]


def _shifted(x: Array, axis: int, step: int) -> Array:
    """Shifts an axis by one step, with zeros beyond the edge."""
    count = x.shape[axis]
    nothing = jnp.zeros_like(jax.lax.slice_in_dim(x, 0, 1, axis=axis))
    if step < 0:
        return jnp.concatenate((nothing, jax.lax.slice_in_dim(x, 0, count - 1, axis=axis)), axis)
    return jnp.concatenate((jax.lax.slice_in_dim(x, 1, count, axis=axis), nothing), axis)


def _tiles(x: Array, axis: int, transform: _Transform) -> list[Array]:
    """Returns each input of all tiles along one axis; tiles overlap by two."""
    size = transform.size
    span = (-(-x.shape[axis] // size) - 1) * size + 1
    padding = [(0, 0)] * x.ndim
    padding[axis] = (1, span + size - x.shape[axis])
    # XLA on CPU computes the operand of a pad only once; otherwise it would fuse the transforms
    # along both sides into one that repeats most of the first.
    padded = jnp.pad(x, padding)
    return [jax.lax.slice_in_dim(padded, at, at + span, size, axis) for at in range(size + 2)]


def _woven(tiles: Sequence[Sequence[Array]]) -> Array:
    """Joins the rows and columns of each tile into frames."""
    y = jnp.stack([jnp.stack(row, axis=3) for row in tiles], axis=2)
    batch, high, rows, wide, columns, channels = y.shape
    return _reshaped(y, (batch, high * rows, wide * columns, channels))


def _reshaped(x: Array, shape: tuple[int, ...]) -> Array:
    """Reshapes an array that is sharded over its first dimension at most."""
    there = jax.typeof(x).sharding
    where = NamedSharding(there.mesh, P(*there.spec[:1], *[None] * (len(shape) - 1)))
    return jax.lax.reshape(x, shape, out_sharding=where)


def _bits(x: Array) -> Array:
    """Returns the bits as integers, which XLA on CPU moves as they are; bfloat16 as float32."""
    return jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")


def _kernel_gradient_by_xla(x: Array, grad: Array, *, side: int) -> Array:
    kernel = jnp.zeros((side, side, x.shape[3], grad.shape[3]), x.dtype)
    return jax.linear_transpose(functools.partial(_convolve_by_xla, x), kernel)(grad)[0]


def kernel_gradient_by_frame(
    x: Float[Array, "B H W I"], grad: Float[Array, "B H W O"], *, side: int
) -> Float[Array, "S S I O"]:
    """Computes the gradient of the kernel by matrix products, one per frame and row of the kernel.

    XLA's own form on CPU, a convolution whose window is as large as the frame, has a quarter of the
    speed. The factors are laid out for the product beforehand, since a product that transposes is
    half as fast: `x` by channels, with a slice for each row of the kernel, and `grad` shifted once
    for each column.
    """
    batch, height, width, inputs = x.shape
    outputs, edge, size = grad.shape[3], side // 2, height * width
    tall = jnp.pad(x, ((0, 0), (edge, edge), (0, 0), (0, 0)))
    by_channel = jax.lax.optimization_barrier(tall.reshape(batch, -1, inputs).swapaxes(1, 2))
    wide = jnp.pad(grad, ((0, 0), (0, 0), (edge, edge), (0, 0)))

    def add(total: Array, frame: tuple[Array, Array]) -> tuple[Array, None]:
        channels, pixels = frame
        shifted = [pixels[:, side - 1 - j : side - 1 - j + width] for j in range(side)]
        columns = jnp.concatenate(shifted, axis=-1).reshape(size, side * outputs)
        columns = jax.lax.optimization_barrier(columns)
        parts = (channels[:, i * width : i * width + size] for i in range(side))
        rows = [product("ip,po->io", part, columns, aligned=True) for part in parts]
        return total + jnp.stack(rows), None

    nothing = jnp.zeros((side, inputs, side * outputs), jnp.float32)
    total, _ = jax.lax.scan(add, nothing, (by_channel, wide))
    return total.reshape(side, inputs, side, outputs).swapaxes(1, 2).astype(x.dtype)
