"""Names of the last release, which still work for one release: modules, classes, settings."""

import dataclasses
import functools
import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Callable, Collection
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound=type)

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
    "lwm.ops.EMPTY": "lwm.ops.mask.EMPTY",
    "lwm.ops.Mask": "lwm.ops.mask.Mask",
    "lwm.train.vqgan_config.Codebook": "lwm.train.vqgan.config.CodebookConfig",
}
"""Old name, with the module it was imported from, to new."""
SETTINGS = {
    "drawings": "sampling",
    "model.dtype": "compute.dtype",
    "model.loss_chunk": "compute.loss_chunk",
    "model.mlp_chunk": "compute.mlp_chunk",
    "model.remat": "compute.remat",
    "training.codebook.continuous": "training.codebook.warmup",
    "training.optimizer.schedule.course": "training.optimizer.schedule.shape",
}
"""Old dotted path of a setting in a run to new: for `run.json`, options and recipes."""


def new_setting(path: str, known: Collection[str]) -> str:
    """Returns the present path of a setting, which is `path` unless it was renamed.

    Args:
        path: Dotted, such as `drawings.image.guidance`.
        known: Paths of the run's settings; a path that is still in use among them is no old one.
    """
    for old, new in SETTINGS.items():
        if _lies_in(path, old) and not any(_lies_in(name, old) for name in known):
            return new + path[len(old) :]
    return path


def _lies_in(path: str, parent: str) -> bool:
    return path == parent or path.startswith(f"{parent}.")


def new_options(
    arguments: list[str], known: Collection[str], warn: Callable[[str], object]
) -> list[str]:
    """Returns command-line arguments with old options replaced; warns of each in one line."""
    renewed = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        path = option.removeprefix("--").replace("-", "_")
        if option.startswith("--") and (new := new_setting(path, known)) != path:
            name = f"--{new.replace('_', '-')}"
            warn(f"{option} is now {name}; the old name goes with the next release")
            argument = name + equals + value
        renewed.append(argument)
    return renewed


def takes_old_settings(place: str) -> Callable[[T], T]:
    """Returns a class decorator: the settings at `place` in a run keep their old names, too.

    Old keywords work and warn, attributes as well unless they moved to another class. An old
    keyword wins over a new one, since `dataclasses.replace` gives all new ones.
    """
    new_paths = {
        old.rpartition(".")[2]: new
        for old, new in SETTINGS.items()
        if old.rpartition(".")[0] == place
    }

    def decorate(cls: T) -> T:
        init = cls.__init__

        def renewed(name: str) -> tuple[str, str]:
            parent, _, leaf = new_paths[name].rpartition(".")
            new = leaf if parent == place else f"{leaf} of `{parent}` in a run"
            message = f"{cls.__name__}.{name} is now {new}; the old name goes with the next release"
            warnings.warn(message, DeprecationWarning, stacklevel=3)
            return parent, leaf

        @functools.wraps(init)
        def __init__(self: Any, *args: Any, **settings: Any) -> None:
            moved: dict[str, dict[str, Any]] = {}
            for old in new_paths.keys() & settings.keys():
                parent, leaf = renewed(old)
                target = settings if parent == place else moved.setdefault(parent, {})
                target[leaf] = settings.pop(old)
            for part in [*settings.values()]:
                for field, values in getattr(part, "_moved", {}).items():
                    own = settings.get(field, getattr(cls, field, None))
                    settings[field] = dataclasses.replace(own, **values)
            init(self, *args, **settings)
            if moved:
                object.__setattr__(self, "_moved", moved)  # for the run, which takes it

        def __getattr__(self: Any, name: str) -> Any:
            if name in new_paths and new_paths[name].rpartition(".")[0] == place:
                return getattr(self, renewed(name)[1])
            raise AttributeError(f"{cls.__name__!r} object has no attribute {name!r}")

        type.__setattr__(cls, "__init__", __init__)
        type.__setattr__(cls, "__getattr__", __getattr__)
        return cls

    return decorate


def keywords(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Returns a decorator: old keywords of a function, old to new, work and warn."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*arguments: P.args, **options: P.kwargs) -> R:
            for old in names.keys() & options:
                message = f"{old}= is now {names[old]}=; the old keyword goes with the next release"
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                options[names[old]] = options.pop(old)
            return function(*arguments, **options)

        return call

    return decorate


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
