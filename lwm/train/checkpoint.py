"""Checkpoints of a run: sharded, with checksums, written in the background."""

import contextlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, Protocol, runtime_checkable

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint import args
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lwm.errors import UserError, is_full_disk, system_reason
from lwm.files import make_folder
from lwm.formats.run_folder import CHECKSUMS, checksums, fault_of
from lwm.plan.program import placed
from lwm.processes import gather
from lwm.train.config import Keep

# Orbax logs each failure with its traceback, and `Checkpoints` raises or names all of them.
logging.getLogger("absl").addFilter(
    lambda record: os.path.join("orbax", "checkpoint") not in record.pathname
)
logging.getLogger("asyncio").addFilter(
    lambda record: "exception was never retrieved" not in record.getMessage()
)


def _quietly(show: Callable[[Any], object]) -> Callable[[Any], None]:
    """Hides the errors of writes that end when a failed one has closed Orbax's event loop."""

    def shown(error: Any) -> None:
        if str(error.exc_value) != "Event loop is closed":
            show(error)

    return shown


sys.unraisablehook = _quietly(sys.unraisablehook)


@runtime_checkable
class Checkpointable(Protocol):
    """State of a run: a pytree of arrays on a mesh."""

    step: Any
    """Number of updates, with skipped ones."""
    bad: Any
    """Number of updates in a row that were skipped as not finite."""


class Checkpoints:
    """Checkpoints in a folder that all processes of a run share; they call its methods together.

    Each is written in the background and appears whole, with its checksums, or not at all.
    """

    def __init__(self, folder: Path, keep: Keep, warn: Callable[[str], object] = lambda line: None):
        """Opens or makes the folder, and removes what a killed process left half written.

        Args:
            folder: Shared by all processes.
            keep: Policy of retention.
            warn: Receives a line for each damaged checkpoint.

        Raises:
            UserError: The folder cannot be made or written to.
        """
        self._folder, self._keep, self._warn = folder.absolute(), keep, warn
        self._known: set[int] = set()
        self._damaged: set[int] = set()
        self._saving: int | None = None
        self._needed = 0
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        policies: list = [preservation_policy.LatestN(self._keep.last)]
        if self._keep.milestones:
            policies.append(preservation_policy.EveryNSteps(self._keep.milestones))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
            lightweight_initialize=True,
            async_options=ocp.options.AsyncOptions(
                post_finalization_callback=self._seal,
                # Where a thread cannot make them, Orbax's others wait 20 minutes for it.
                create_directories_asynchronously=False,
            ),
        )
        make_folder(self._folder)
        try:
            return ocp.CheckpointManager(self._folder, options=options)
        except OSError as error:
            raise UserError(f"{self._folder} cannot hold checkpoints: {error.strerror}") from None

    def save(self, step: int, state: Checkpointable, data: dict) -> None:
        """Begins to write a checkpoint, once the one before is written.

        The arrays may be donated as soon as this returns. A step that this object has saved or
        restored is not written again. Checkpoints found damaged by `restore` are removed.

        Args:
            step: Name of the checkpoint.
            state: Its arrays are stored, its static fields are not.
            data: State of the data loader, the same on all processes; fit for JSON.

        Raises:
            UserError: The disk is or would be full, the folder cannot be written to, or it holds
                another run's later steps.
        """
        self.wait()
        if step in self._known:
            return
        try:
            self._begin(step, state, data)
        except UserError:
            raise
        except Exception as error:
            self._give_up(step, error)

    def _begin(self, step: int, state: Checkpointable, data: dict) -> None:
        for damaged in self._damaged.intersection(self._manager.all_steps()):
            self._manager.delete(damaged)
        self._damaged.clear()
        if later := [other for other in self._manager.all_steps() if other >= step]:
            raise UserError(
                f"{self._folder} already holds step {max(later)}, not before step {step}; "
                "resume from there or choose another folder"
            )
        leaves = named_leaves(state)
        # All processes write to one disk and must decide alike.
        self._needed = sum(leaf.nbytes for leaf in leaves.values())
        if shutil.disk_usage(self._folder).free < self._needed:
            raise self._full(step)
        # A copy, as it is written later; values that do not fit JSON fail here.
        facts = json.loads(json.dumps({"leaves": _shapes(leaves), "data": data}))
        items = args.Composite(state=args.PyTreeSave(leaves), data=args.JsonSave(facts))
        self._saving = step
        self._manager.save(step, args=items, force=True)

    def wait(self) -> None:
        """Waits until the checkpoint being saved is on disk.

        Raises:
            UserError: It cannot be written; what there is of it is removed.
        """
        if self._saving is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._give_up(self._saving, error)
        self._known.add(self._saving)
        self._saving = None

    def restore(self, abstract: Any) -> tuple[int, Any, dict] | None:
        """Reads the newest undamaged checkpoint; returns None if there is no checkpoint.

        Args:
            abstract: Shapes, types and shardings to restore to; see `abstract_state`.

        Returns:
            The step, the state and the `data` that were saved.

        Raises:
            UserError: All are damaged, or the newest good one is of another model or optimizer.
        """
        self.wait()
        faults = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            if fault := next(filter(None, gather(self._fault_of(step))), None):
                faults.append(f"{step} ({fault})")
                self._damaged.add(step)
                self._known.discard(step)
                continue
            for each in faults:
                self._warn(
                    f"checkpoint {each} in {self._folder} is damaged; going on from step {step}"
                )
            restored = self._read(step, abstract)
            self._known.add(step)
            return step, *restored
        if faults:
            raise UserError(
                f"every checkpoint in {self._folder} is damaged: {', '.join(faults)}; "
                "restore one from a copy, or start again in another folder"
            )
        return None

    def close(self) -> None:
        """Waits, and closes the folder.

        Raises:
            UserError: See `wait`.
        """
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, step: int, abstract: Any) -> tuple[Any, dict]:
        facts = self._manager.restore(step, args=args.Composite(data=args.JsonRestore()))["data"]
        leaves = named_leaves(abstract)
        _require_same(f"step {step} in {self._folder}", facts["leaves"], _shapes(leaves))
        wanted = {
            name: ocp.ArrayRestoreArgs(sharding=leaf.sharding, shape=leaf.shape, dtype=leaf.dtype)
            for name, leaf in leaves.items()
        }
        items = args.Composite(state=args.PyTreeRestore(item=leaves, restore_args=wanted))
        arrays = self._manager.restore(step, args=items)["state"]
        state = jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in leaves])
        return state, facts["data"]

    def _seal(self) -> None:
        """Writes the checksums. Orbax calls this when all is written, before it renames."""
        if jax.process_index() == 0:
            (place,) = self._partial()
            # Orbax's own files beside the items still change, and reading does not need them.
            files = [path for path in place.glob("*/**/*") if path.is_file()]
            names = [str(path.relative_to(place)) for path in files]
            sizes = [path.stat().st_size for path in files]
            sums = dict(zip(names, zip(sizes, checksums(files), strict=True), strict=True))
            (place / CHECKSUMS).write_text(json.dumps(sums), encoding="utf-8")

    def _partial(self) -> list[Path]:
        return list(self._folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"))

    def _fault_of(self, step: int) -> str | None:
        part, parts = jax.process_index(), jax.process_count()
        return fault_of(self._folder / str(step), part=part, parts=parts)

    def _give_up(self, step: int, error: Exception) -> NoReturn:
        """Removes the partial checkpoint and raises `error`, one of the disk as a UserError."""
        partial, self._saving = self._partial(), None
        with contextlib.suppress(Exception):  # It may raise the same error again.
            self._manager.close()
        for path in partial:
            shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(UserError):  # The first error says more.
            self._manager = self._open()
        if is_full_disk(error):
            raise self._full(step) from error
        if reason := system_reason(error):
            raise UserError(
                f"the checkpoint of step {step} cannot be written to {self._folder}: {reason}; "
                f"{self._left()}"
            ) from error
        raise error

    def _full(self, step: int) -> UserError:
        free = shutil.disk_usage(self._folder).free
        return UserError(
            f"no space for the checkpoint of step {step} in {self._folder}: it needs "
            f"{self._needed / 1e9:.3g} GB and {free / 1e9:.3g} GB are free; make room or "
            f"keep fewer; {self._left()}"
        )

    def _left(self) -> str:
        names = [path.name for path in self._folder.glob("[0-9]*") if path.name.isdecimal()]
        return newest_of(set(map(int, names)) - self._damaged)


def newest_of(steps: Iterable[int]) -> str:
    """Returns in words what is left of a run that fails: its newest checkpoint, or none."""
    newest = max(steps, default=None)
    if newest is None:
        return "no checkpoint was made before"
    return f"the checkpoint of step {newest} is whole"


def abstract_state(make: Callable[[], Any], mesh: Mesh) -> Any:
    """Returns shapes, types and shardings on `mesh` of the state that `make` returns."""
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(make)
    return placed(shapes, mesh)


def named_leaves(state: Checkpointable) -> dict[str, Any]:
    """Returns the arrays of a state by their paths, such as `model.norm.scale`."""
    leaves = jax.tree.leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _shapes(leaves: dict[str, Any]) -> dict[str, str]:
    sizes = {name: ",".join(map(str, leaf.shape)) for name, leaf in leaves.items()}
    return {name: f"{leaf.dtype}[{sizes[name]}]" for name, leaf in leaves.items()}


def _require_same(source: str, stored: dict[str, str], wanted: dict[str, str]) -> None:
    """Raises UserError with the first tensors that are not the same in both."""
    names = [*wanted, *(name for name in stored if name not in wanted)]
    pairs = [(name, stored.get(name, "absent"), wanted.get(name, "absent")) for name in names]
    differing = [f"{name} is {one} there, {two} here" for name, one, two in pairs if one != two]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"{source} is of another model or optimizer: {'; '.join(differing[:3])}{more}; "
            "use that run's settings or another folder"
        )
