"""Checks and times lwm on one accelerator within eight minutes; prints one JSON line per finding.

    python tools/gpu_check.py --out DIR --only smoke,attention     # on a GPU or TPU
    JAX_PLATFORMS=cpu python tools/gpu_check.py --tiny             # at toy sizes, anywhere

Results are compared with the CPU and the reference kernel; speed is given beside the peak of the
device, and attention beside cuDNN. Only JAX, Equinox, optax and jaxtyping are needed. Each finding
is also appended to DIR/gpu_check.jsonl at once: a second run can take, by `--only`, the parts that
the first had no time for.
"""

import argparse
import dataclasses
import functools
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[1]))
# Before JAX is imported.
if "--tiny" in sys.argv:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Optimization takes most of the compile time.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

import lwm.model.layers as model_layers
from lwm.data.example import Batch
from lwm.generate.decoding import BURST
from lwm.generate.engine import Engine
from lwm.generate.pages import Holding
from lwm.generate.plan import GenerationPlan
from lwm.generate.slots import Slots
from lwm.generate.work import Work, Written
from lwm.model.config import Compute, LlamaConfig, Remat, preset
from lwm.model.layers import Packing
from lwm.model.llama import Llama
from lwm.model.pool import PAGE, PagePool, Place, table_width
from lwm.ops.attention import attention
from lwm.ops.mask import Mask
from lwm.plan.flops import known_peak, training_flops
from lwm.sharding import HEADS, ROW, ROWS, TOKENS, make_mesh, manual, on_mesh
from lwm.tokens import TokenSpace
from lwm.train.config import AdamW, Loss, Schedule
from lwm.train.optimizer import build_optimizer
from lwm.train.step import TrainState, TrainStep
from lwm.vqgan.config import LWM_VQGAN
from lwm.vqgan.model import VQGAN, decode_frames, encode_frames

VOCABULARY = TokenSpace(text=32_000, vision=8448, codes=8192)
PRECISIONS = (("float32", "highest"), ("float32", "default"), ("bfloat16", "default"))
"""Types, and the precision of products in them."""
OPTIMIZER = build_optimizer(AdamW(schedule=Schedule(peak=1e-3, warmup=10)), 1000)


class Check:
    """A device, the time that is left, and the findings."""

    def __init__(self, *, tiny: bool, seconds: float, out: Path):
        self.tiny, self.out = tiny, out
        self.device, self.cpu = jax.devices()[0], jax.devices("cpu")[0]
        # Toy sizes show that the script runs; more types only take time to compile.
        self.precisions = PRECISIONS[-1:] if tiny else PRECISIONS
        self.peak = known_peak(self.device.device_kind, "bfloat16") or 0.1e12
        self.failures = 0
        self._begun, self._seconds = time.perf_counter(), seconds
        self._weights: Llama | None = None

    def report(self, part: str, **found: Any) -> None:
        """Prints a finding, and appends it to the file."""
        self.failures += "failed" in found
        at = round(time.perf_counter() - self._begun, 1)
        rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in found.items()}
        line = json.dumps({"part": part, "at": at} | rounded)
        print(line, flush=True)
        with (self.out / "gpu_check.jsonl").open("a") as file:
            file.write(line + "\n")

    def is_late(self, needed: float, part: str, **what: Any) -> bool:
        """Says whether fewer than so many seconds are left, and reports what is then left out."""
        late = self._seconds - (time.perf_counter() - self._begun) < needed
        if late:
            self.report(part, skipped="out of time", **what)
        return late

    def weights(self, config: LlamaConfig, mesh: Mesh) -> Llama:
        """Returns constant weights in bfloat16, kept for the next part."""
        # Leaf by leaf: `init` would hold 7B weights in float32 and their random bits at once.
        if self._weights is None:
            with jax.set_mesh(mesh):
                compute = Compute(dtype="bfloat16")
                shapes = jax.eval_shape(
                    lambda: Llama.init(config, compute, key=jr.key(0)).unstack()
                )
                self._weights = jax.tree.map(
                    lambda x: jax.device_put(
                        jnp.full(x.shape, 0.01, jnp.bfloat16), on_mesh(mesh, spec_of(x))
                    ),
                    shapes,
                )
        return self._weights

    def release(self) -> None:
        """Gives the memory of the kept weights back."""
        self._weights = None


def timed(run: Callable[[], Any], most: float = 3.0, repeats: int = 5) -> tuple[float, float]:
    """Returns the median seconds and those of the first call, which compiles."""

    def once() -> float:
        begun = time.perf_counter()
        jax.block_until_ready(run())
        return time.perf_counter() - begun

    first = once()
    times: list[float] = []
    while len(times) < repeats and sum(times) < most:
        times.append(once())
    return sorted(times)[len(times) // 2], first


def error(found: Any, wanted: Any) -> float:
    """Returns the largest difference in parts of the largest value, to two digits."""
    found, wanted = np.asarray(found, np.float32), np.asarray(wanted, np.float32)
    return float(f"{np.abs(found - wanted).max() / max(1e-9, np.abs(wanted).max()):.2g}")


def spec_of(shape: jax.ShapeDtypeStruct) -> P:
    """Returns the partition of a shape; none, if it has none."""
    return shape.sharding.spec if isinstance(shape.sharding, NamedSharding) else P()


def mesh_of(device: jax.Device) -> Mesh:
    """Returns a mesh of one device."""
    return make_mesh("1,1,1,1", [device])


def small() -> LlamaConfig:
    """Returns a toy configuration with a vision vocabulary."""
    tokens = TokenSpace(text=500, vision=76, codes=64)
    return dataclasses.replace(preset("debug"), tokens=tokens)


def one_billion(check: Check, length: int, remat: Remat = "attention"):
    """Returns the configuration of a 1B model, or of a toy."""
    config = small() if check.tiny else dataclasses.replace(preset("1b"), tokens=VOCABULARY)
    mlp_chunk, loss_chunk = (64, 96) if check.tiny else (8192, 2048)
    compute = Compute(dtype="bfloat16", remat=remat, mlp_chunk=mlp_chunk, loss_chunk=loss_chunk)
    return dataclasses.replace(config, max_context=length), compute


def check_attention(check: Check) -> None:
    """Compares packed rows, forward and backward, with the reference in float32 on the CPU."""
    length = 256 if check.tiny else 2048
    segments = np.zeros((2, length), np.int32)
    segments[0, length // 3 :], segments[0, -length // 8 :], segments[1, : length // 5] = 1, -1, -1

    def both(implementation, q, k, v, dout, segments):
        index = jnp.arange(length)
        mask = Mask(index, index, segments, segments)
        attend = functools.partial(attention, mask=mask, implementation=implementation)
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(dout)

    keys = jr.split(jr.key(0), 4)
    for dtype, precision in check.precisions:
        shapes = [(2, length, heads, 64) for heads in (8, 2, 2, 8)]
        host = [
            np.asarray(jr.normal(key, shape).astype(dtype))
            for key, shape in zip(keys, shapes, strict=True)
        ]
        with jax.default_device(check.cpu):
            exact = [jax.device_put(x.astype(np.float32), check.cpu) for x in host]
            wanted = jax.jit(functools.partial(both, "reference"))(*exact, segments)
        with jax.default_matmul_precision(precision):
            placed = [jax.device_put(x, check.device) for x in host]
            found = jax.jit(functools.partial(both, "blockwise"))(*placed, segments)
        check.report(
            "smoke",
            dtype=dtype,
            precision=precision,
            errors_out_dq_dk_dv=[error(x, y) for x, y in zip(found, wanted, strict=True)],
            finite=all(bool(jnp.isfinite(x).all()) for x in found),
        )


def begin_training(config: LlamaConfig, compute: Compute, mesh: Mesh, rows: int, length: int):
    """Returns a first state and a batch of random ids."""
    shape = (1, rows, length)
    ids = np.random.default_rng(0).integers(0, config.tokens.size, (1, rows, length + 1), np.int32)

    def put(values, spec: P = TOKENS) -> jax.Array:
        return jax.device_put(values, on_mesh(mesh, P(None, *spec)))

    batch = Batch(
        tokens=put(ids[..., :-1]),
        targets=put(ids[..., 1:]),
        segments=put(np.zeros(shape, np.int32)),
        positions=put(np.broadcast_to(np.arange(length, dtype=np.int32), shape).copy()),
        weights=put(np.full(shape, 1 / length, np.float32)),
        counts=put(np.ones((1, rows, 2), np.float32), ROWS),
    )
    with jax.set_mesh(mesh):
        state = jax.jit(
            lambda: TrainState.start(Llama.init(config, compute, key=jr.key(0)), OPTIMIZER)
        )()
    return state, batch


def check_training(check: Check) -> None:
    """Compares three updates of a small model with those on the CPU."""

    def train(dtype, device: jax.Device, precision: str) -> np.ndarray:
        mesh, lines = mesh_of(device), []
        compute = Compute(dtype=dtype, remat="attention", mlp_chunk=64, loss_chunk=96)
        state, batch = begin_training(small(), compute, mesh, 2, 256)
        step = TrainStep(OPTIMIZER, Loss())
        with jax.set_mesh(mesh), jax.default_matmul_precision(precision):
            for _ in range(3):
                state, metrics = step(state, batch, jnp.arange(256))
                lines.append((float(metrics.loss), float(metrics.gradient_norm)))
        return np.array(lines)

    wanted = train("float32", check.cpu, "highest")
    for dtype, precision in check.precisions:
        found = train(dtype, check.device, precision)
        check.report(
            "train_same",
            dtype=dtype,
            precision=precision,
            relative_loss_norm=[float(f"{x:.2g}") for x in np.abs(found / wanted - 1).max(0)],
            loss=found[:, 0].tolist(),
        )


def check_decoding(check: Check) -> None:
    """Compares greedy ids with those of whole forward passes, and with those on the CPU."""
    config = small()
    prompt = np.random.default_rng(1).integers(0, 500, 600).tolist()
    plan = GenerationPlan(max_tokens=16)

    def write(dtype, device: jax.Device) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Returns, by slots, ids and the likeliest ones at the same places of a forward pass."""
        mesh = mesh_of(device)
        compute = Compute(dtype=dtype)
        with jax.set_mesh(mesh):
            init = jax.jit(lambda: Llama.init(config, compute, key=jr.key(0)))
            model = jax.tree.map(lambda x: 3 * x.astype(dtype), init())
            forward = jax.jit(lambda m, t: m(t, Packing.whole(*t.shape)))
        engine, found = Engine(model, mesh), {}
        for lane in (1, 2):
            request = Work(plan=plan).request(prompt, lane=lane)
            written = [event for event in engine.stream(request) if isinstance(event, Written)]
            ids = [i for event in written for i in event.ids]
            with jax.set_mesh(mesh):
                whole = np.array([[*prompt, *ids]], np.int32)
                logits = forward(model, jax.device_put(whole, on_mesh(mesh, TOKENS)))
                likeliest = np.asarray(jnp.argmax(logits[0, :, : config.tokens.text], -1))
            found[lane] = np.array(ids), likeliest[len(prompt) - 1 : -1]
        return found

    for dtype in ("float32", "bfloat16"):
        with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
            here, wanted = write(dtype, check.device), write(dtype, check.cpu)
        for lane, (ids, likeliest) in here.items():
            check.report(
                "decode_same",
                dtype=dtype,
                slots=lane,
                equals_forward=int((likeliest == ids).sum()),
                equals_cpu=int((ids == wanted[lane][0]).sum()),
                of=len(ids),
            )


def check_vqgan(check: Check) -> None:
    """Compares codes and pixels of random weights with those on the CPU; times both ways."""
    config, side, copies, batch = LWM_VQGAN, 256, 32, 16
    if check.tiny:
        side, copies, batch = 32, 2, 2
        config = dataclasses.replace(
            config, resolution=side, hidden=32, multipliers=(1, 2), res_blocks=1, codes=64
        )
    frames = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)

    def build(dtype, device: jax.Device) -> VQGAN:
        typed = dataclasses.replace(config, dtype=dtype)
        with jax.set_mesh(mesh := mesh_of(device)):
            model = jax.jit(lambda: VQGAN.init(typed, key=jr.key(0)))()
            return jax.device_put(model, on_mesh(mesh, P()))

    with jax.default_matmul_precision("highest"):
        exact = build("float32", check.cpu)
        wanted = encode_frames(exact, frames)
        pixels = decode_frames(exact, wanted)
    for dtype, precision in check.precisions:
        with jax.default_matmul_precision(precision):
            model = build(dtype, check.device)
            codes, found = encode_frames(model, frames), decode_frames(model, wanted)
        check.report(
            "vqgan",
            dtype=dtype,
            precision=precision,
            codes_equal=float((codes == wanted).mean()),
            pixels_error=float(np.abs(found.astype(np.float32) - pixels).mean()),
        )
    model = build("bfloat16", check.device)
    many, codes = np.repeat(frames, copies, 0), np.repeat(wanted, copies, 0)
    encoding, first = timed(lambda: encode_frames(model, many, batch=batch))
    decoding, _ = timed(lambda: decode_frames(model, codes, batch=batch))
    check.report(
        "vqgan_speed",
        dtype="bfloat16",
        encoded_frames_s=len(many) / encoding,
        decoded_frames_s=len(many) / decoding,
        first_call_s=first,
    )


def time_matmul(check: Check) -> None:
    """Times a square product: the speed that is within reach."""
    size = 256 if check.tiny else 8192
    x = jr.normal(jr.key(0), (size, size), jnp.bfloat16)
    multiply = jax.jit(lambda x: x @ x)
    seconds, _ = timed(lambda: multiply(x))
    flops = 2 * size**3 / seconds
    check.report("matmul", size=size, tflops=flops / 1e12, share_of_peak=flops / check.peak)


def library_attention(q, k, v):
    """Attends as cuDNN does on a GPU: whole causal rows only."""
    gpu = jax.default_backend() == "gpu"
    kernel = "cudnn" if gpu else "xla"
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=kernel)


def time_attention(check: Check) -> None:
    """Times whole causal rows, forward and with backward, beside the library's kernel."""

    def ours(q, k, v):
        index, segments = jnp.arange(q.shape[1]), jnp.zeros(q.shape[:2], jnp.int32)
        return attention(q, k, v, Mask(index, index, segments, segments))

    long = ((8192, 16, 128), (32_768, 16, 128), (32_768, 32, 128))
    for length, heads, width in ((256, 2, 64),) if check.tiny else long:
        shape, work = (1, length, heads, width), 2 * heads * length**2 * width
        tensors = [jr.normal(key, shape, jnp.bfloat16) for key in jr.split(jr.key(0), 4)]
        for name, attend in (("library", library_attention), ("blockwise", ours)):
            case = {"kernel": name, "length": length, "heads": heads, "head_dim": width}
            if check.is_late(40, "attention", **case):
                return

            def differentiate(q, k, v, dout, attend=attend):
                return jax.vjp(attend, q, k, v)[1](dout)

            forward, both = jax.jit(attend), jax.jit(differentiate)
            try:
                once, compiling = timed(lambda run=forward, given=tensors[:3]: run(*given))
                twice, more = timed(lambda run=both, given=tensors: run(*given))
            except Exception as fault:
                check.report("attention", **case, failed=first_words(fault))
                continue
            check.report(
                "attention",
                **case,
                forward_ms=1e3 * once,
                forward_tflops=work / once / 1e12,
                both_ms=1e3 * twice,
                both_tflops=3.5 * work / twice / 1e12,
                first_calls_s=compiling + more,
            )


def first_words(fault: Exception) -> str:
    """Returns the kind of a failure and the beginning of its message."""
    return f"{type(fault).__name__}: {str(fault)[:400]}"


def time_step(check: Check, length: int, kernel: str) -> None:
    """Times an update of a 1B model on one whole row, with lwm's attention or the library's."""
    config, compute = one_billion(check, length)
    mesh, index, kept = mesh_of(check.device), jnp.arange(length), model_layers.ring_attention
    if kernel == "library":
        local = manual(library_attention, (HEADS,) * 3, HEADS)
        model_layers.ring_attention = cast(Any, lambda q, k, v, mask: local(q, k, v))
        jax.clear_caches()
    try:
        state, batch = begin_training(config, compute, mesh, 1, length)
        held, step = [state], TrainStep(OPTIMIZER, Loss())

        def update() -> jax.Array:
            with jax.set_mesh(mesh):
                held[0], metrics = step(held[0], batch, index)
            return metrics.loss

        seconds, first = timed(update, most=8, repeats=3)
        flops = training_flops(config, tokens=length, pairs=length * (length + 1) / 2)
        check.report(
            "step",
            kernel=kernel,
            length=length,
            parameters=sum(x.size for x in jax.tree.leaves(held[0].model)),
            seconds=seconds,
            tokens_s=length / seconds,
            mfu=flops / seconds / check.peak,
            first_call_s=first,
            peak_gib=(check.device.memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**30,
            loss=float(update()),
        )
    finally:
        model_layers.ring_attention = kept
        jax.clear_caches()


def time_short_steps(check: Check) -> None:
    """Times updates of 8K tokens with both kernels."""
    for kernel in ("lwm", "library"):
        time_step(check, 256 if check.tiny else 8192, kernel)


def time_long_steps(check: Check) -> None:
    """Times updates of 32K tokens with both kernels."""
    check.release()
    for kernel in ("library", "lwm"):
        if check.is_late(60, "step", kernel=kernel):
            return
        time_step(check, 512 if check.tiny else 32_768, kernel)


def seven_billion(check: Check) -> tuple[LlamaConfig, Mesh, Llama]:
    """Returns a 7B model, or a toy."""
    whole = dataclasses.replace(preset("7b"), tokens=VOCABULARY, max_context=1 << 20)
    config, mesh = small() if check.tiny else whole, mesh_of(check.device)
    return config, mesh, check.weights(config, mesh)


def filled_pool(mesh: Mesh, model: Llama, length: int) -> tuple[PagePool, Holding]:
    """Returns a pool with pages for one row; the speed does not depend on what they hold."""
    pages = range(1, -(-length // PAGE) + 1)
    with jax.set_mesh(mesh):
        pool = PagePool.empty(model.config, model.compute.dtype, per_device=len(pages) + 1)
    holding = Holding()
    holding.pages += pages
    return pool, holding


def time_decoding(check: Check) -> None:
    """Times greedy decoding at one row, in ids and in bytes read a second."""
    config, mesh, model = seven_billion(check)
    weights = sum(x.nbytes for x in jax.tree.leaves(model))
    for length in (64, 300) if check.tiny else (1024, 32_000):
        if check.is_late(30, "decode", length=length):
            return
        plan = GenerationPlan(max_tokens=3 * BURST)
        pool, holding = filled_pool(mesh, model, length + plan.max_tokens)
        slots = Slots(model, mesh, 1, grammar=None, stop_places=8)
        slots.seat(0, plan, [5] * length, holding)
        with jax.set_mesh(mesh):
            begun = time.perf_counter()
            pool, *_ = slots.decode(pool, BURST)
            first, begun, count = time.perf_counter() - begun, time.perf_counter(), 0
            while count < 2 * BURST and time.perf_counter() - begun < 8:
                pool, written = slots.decode(pool, BURST)
                count += written.ids.shape[1]
        seconds = (time.perf_counter() - begun) / count
        cached = 2 * 2 * config.num_layers * config.num_kv_heads * config.head_dim * length
        check.report(
            "decode",
            length=length,
            tokens_s=1 / seconds,
            ms=1e3 * seconds,
            gb_s=(weights + cached) / seconds / 1e9,
            read_gb=(weights + cached) / 1e9,
            first_call_s=first,
        )


def time_reading(check: Check) -> None:
    """Times reading a chunk of a prompt after a short and a long one."""
    config, mesh, model = seven_billion(check)
    chunk = 64 if check.tiny else 512
    for length in (64, 256) if check.tiny else (1024, 31_232):
        if check.is_late(30, "prefill", length=length):
            return
        pool, holding = filled_pool(mesh, model, length + chunk)
        table = np.zeros((1, table_width(config.max_context)), np.int32)
        table[0, : len(holding.pages)] = holding.pages
        put = functools.partial(jax.device_put, device=on_mesh(mesh, ROWS))
        place = Place(
            put(table), *(jax.device_put(np.array([n]), on_mesh(mesh, ROW)) for n in (length, 0))
        )
        tokens, held = (
            jax.device_put(np.full((1, chunk), 5, np.int32), on_mesh(mesh, TOKENS)),
            [pool],
        )

        def read(place=place, tokens=tokens, held=held) -> Any:
            with jax.set_mesh(mesh):
                states, held[0] = model.extend(tokens, place, held[0])
            return states

        seconds, first = timed(read, repeats=3)
        check.report(
            "prefill", length=length, chunk=chunk, tokens_s=chunk / seconds, first_call_s=first
        )


def find_longest(check: Check) -> None:
    """Reports what XLA needs for an update of a 1B model at growing lengths; nothing runs."""
    remats: tuple[Remat, ...] = ("attention", "full", "offload")
    for remat in remats[:1] if check.tiny else remats:
        for length in (512,) if check.tiny else (131_072, 262_144, 524_288):
            case = {"remat": remat, "length": length}
            if check.is_late(45, "longest", **case):
                return
            try:
                inputs, temporary, seconds = compile_step(check, length, remat)
            except Exception as fault:
                check.report("longest", **case, failed=first_words(fault))
                break
            gib = {"inputs_gib": inputs / 2**30, "temporary_gib": temporary / 2**30}
            check.report("longest", **case, **gib, compile_s=seconds)
            if sum(gib.values()) > 75:
                break


def compile_step(check: Check, length: int, remat: Remat) -> tuple[int, int, float]:
    """Returns bytes of inputs, temporary bytes, and seconds of compiling."""
    config, compute = one_billion(check, length, remat)
    mesh = mesh_of(check.device)

    def shape(dtype, *sizes: int, spec: P = TOKENS) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=on_mesh(mesh, P(None, *spec)))

    with jax.set_mesh(mesh):
        state = jax.eval_shape(
            lambda: TrainState.start(Llama.init(config, compute, key=jr.key(0)), OPTIMIZER)
        )
        state = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_mesh(mesh, spec_of(x))),
            state,
        )
        ids = shape(jnp.int32, 1, 1, length)
        weights, counts = (
            shape(jnp.float32, 1, 1, length),
            shape(jnp.float32, 1, 1, 2, spec=ROWS),
        )
        batch = Batch(ids, ids, ids, ids, weights, counts)
        index = jax.ShapeDtypeStruct((length,), jnp.int32)
        begun = time.perf_counter()
        step: Any = TrainStep.__call__
        done = step.lower(TrainStep(OPTIMIZER, Loss()), state, batch, index).compile()
    memory = done.memory_analysis()
    seconds = time.perf_counter() - begun
    return memory.argument_size_in_bytes, memory.temp_size_in_bytes, seconds


PARTS: dict[str, Callable[[Check], None]] = {
    "smoke": check_attention,
    "matmul": time_matmul,
    "attention": time_attention,
    "step8k": time_short_steps,
    "train_same": check_training,
    "decode": time_decoding,
    "prefill": time_reading,
    "step32k": time_long_steps,
    "decode_same": check_decoding,
    "vqgan": check_vqgan,
    "longest": find_longest,
}
"""Most wanted first."""


def main() -> None:
    """Runs the parts asked for; exits with 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")))
    parser.add_argument("--seconds", type=float, default=460)
    parser.add_argument("--only", default="", help=f"some of {','.join(PARTS)}")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    check = Check(tiny=given.tiny, seconds=given.seconds, out=given.out)
    check.report(
        "start",
        device=check.device.device_kind,
        jax=jax.__version__,
        peak_tflops=check.peak / 1e12,
    )
    for name, part in PARTS.items():
        if given.only and name not in given.only.split(","):
            continue
        if check.is_late(25, name):
            continue
        try:
            part(check)
        except Exception as fault:
            where = traceback.format_exc()[-900:]
            check.report(name, failed=first_words(fault), where=where)
    check.report("end", failures=check.failures)
    sys.exit(bool(check.failures))


if __name__ == "__main__":
    main()
