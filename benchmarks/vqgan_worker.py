"""Encodes and decodes frames as `vqgan.py` tells it to, by our code or by the original's.

Free of our package unless it runs ours, as the original's has the same name.
"""

import importlib
import inspect
import json
import os
import resource
import sys
import time
import types
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[np.ndarray], np.ndarray]


def ours(dtype: Any, folder: Path, batch: int, devices: int) -> tuple[Run, Run]:
    """Our encoding and decoding."""
    from lwm.sharding import make_mesh
    from lwm.vqgan.checkpoint import read_vqgan
    from lwm.vqgan.model import decode_frames, encode_frames

    model = read_vqgan(folder / "vqgan", mesh=make_mesh(f"{devices},1,1,1"), dtype=dtype)
    return (
        lambda pixels: encode_frames(model, pixels, batch=batch),
        lambda codes: decode_frames(model, codes, batch=batch),
    )


def theirs(original: Path, folder: Path, batch: int) -> tuple[Run, Run]:
    """The original's."""
    config = importlib.import_module("ml_collections").ConfigDict

    def defaults(function: Callable[..., object]) -> object:
        parameters = inspect.signature(function).parameters.items()
        return config({name: each.default for name, each in parameters if name != "self"})

    # Their library does not import with a JAX of today, and the VQGAN needs only this of it.
    sys.modules["tux"] = types.ModuleType("tux")
    vars(sys.modules["tux"]).update(function_args_to_config=defaults, open_file=open)
    sys.path.insert(0, str(original.expanduser().resolve()))
    model = importlib.import_module("lwm.vqgan").VQGAN(str(folder / "vqgan"))

    def by_batch(run: Run) -> Run:
        return lambda rows: np.concatenate(
            [np.asarray(run(rows[at : at + batch])) for at in range(0, len(rows), batch)]
        )

    return by_batch(lambda pixels: model.encode(pixels)[1]), by_batch(model.decode)


def main(name: str, original: str, place: str, file: str, batch: str, devices: str) -> None:
    """Answers each line with one of JSON: seconds, bytes, or versions."""
    # Nothing but answers may get to the pipe.
    answers, sys.stdout = sys.stdout, sys.stderr
    folder = Path(place)
    if name == "original":
        encode, decode = theirs(Path(original), folder, int(batch))
    else:
        encode, decode = ours(name, folder, int(batch), int(devices))
    inputs, results = dict(np.load(folder / "inputs.npz")), {}
    for line in sys.stdin:
        what = line.strip()
        start = time.perf_counter()
        if what == "encode":
            results["codes"] = encode(inputs["pixels"])
        elif what == "decode":
            results["pixels"] = decode(inputs["codes"])
        answer: object = time.perf_counter() - start
        if len(results) == 2 and not Path(file).exists():
            np.savez(file, **results)
        if what == "versions":
            flax = f", flax {version('flax')}" if name == "original" else ""
            answer = f"jax {version('jax')}{flax}"
        elif what == "memory":
            answer = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    main(*sys.argv[1:])
