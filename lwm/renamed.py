"""Names of the last release, which still work for one release: modules, classes, settings."""

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

MODULES = {
    "lwm.convert.vqgan": "lwm.vqgan.checkpoint",
    "lwm.data.frames": "lwm.media.frames",
    "lwm.generate.drawing": "lwm.sampling_params",
    "lwm.generate.writing": "lwm.sampling_params",
    "lwm.model.vqgan": "lwm.vqgan.model",
    "lwm.model.vqgan_config": "lwm.vqgan.config",
    "lwm.train.vqgan_config": "lwm.train.vqgan.config",
}
"""Old module to new."""
NAMES = {
    "lwm.Drawing": "lwm.FrameSampling",
    "lwm.Drawings": "lwm.VisionSampling",
    "lwm.Writing": "lwm.SamplingParams",
    "lwm.data.pack.Packing": "lwm.data.pack.PackingConfig",
    "lwm.generate.drawing.Drawing": "lwm.FrameSampling",
    "lwm.generate.drawing.Drawings": "lwm.VisionSampling",
    "lwm.generate.drawing.LWM": "lwm.sampling_params.LWM_SAMPLING",
    "lwm.generate.writing.Writing": "lwm.SamplingParams",
    "lwm.loading.open_model_files": "lwm.convert.open.open_model_files",
    "lwm.loading.read_llama": "lwm.convert.open.read_llama",
    "lwm.train.vqgan_config.Codebook": "lwm.train.vqgan.config.CodebookConfig",
}
"""Old name, with the module it was imported from, to new."""


def look_up(module: str) -> Callable[[str], Any]:
    """Returns a `__getattr__` for a module: finds its old names and warns of them."""

    def find(name: str) -> Any:
        old = f"{module}.{name}"
        if old not in NAMES:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new = NAMES[old]
        message = f"{old} is now {new}; the old name goes with the next release"
        warnings.warn(message, DeprecationWarning, stacklevel=3)
        target, _, attribute = new.rpartition(".")
        return getattr(importlib.import_module(target), attribute)

    return find


class OldModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules by the names of the last release."""

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Returns a spec for an old module, None for every other."""
        if fullname not in MODULES:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        """Fills an old module with the names of the new one."""
        old, new = module.__name__, MODULES[module.__name__]
        message = f"{old} is now {new}; the old name goes with the next release"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        names = vars(importlib.import_module(new))
        vars(module).update({k: v for k, v in names.items() if not k.startswith("__")})
        vars(module)["__getattr__"] = look_up(old)


def install() -> None:
    """Makes the old modules importable."""
    if not any(isinstance(finder, OldModules) for finder in sys.meta_path):
        sys.meta_path.append(OldModules())
