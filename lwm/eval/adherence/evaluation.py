"""Captions of the world that a model draws, judged by a program that reads pixels."""

import dataclasses
import functools
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

import lwm
from lwm.data.captions import VisionKind, request
from lwm.errors import UserError
from lwm.eval.adherence.config import AdherenceConfig
from lwm.eval.prompt import PromptEncoder
from lwm.eval.question import Question, Response
from lwm.eval.results import ResultRow
from lwm.eval.subject import Subject
from lwm.generate.loaded import LoadedModel
from lwm.media.write import contact_sheet
from lwm.sampling_params import VisionSampling
from lwm.world.attributes import Split
from lwm.world.checker import agreement, read_facts
from lwm.world.facts import Facts
from lwm.world.language import caption
from lwm.world.world import Clip, World

_COLUMNS, _SHOWN = 8, 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A caption, by the number of its clip."""

    split: Split
    frames: int
    sample: int
    length: int
    """Tokens of the prompt and of the frames."""


class AdherenceEvaluation:
    """Captions to be drawn; see `lwm.eval.ask.Evaluation`."""

    def __init__(self, config: AdherenceConfig, subject: Subject) -> None:
        """Draws up the captions.

        Raises:
            UserError: The model generates no images, or they do not fit into its context.
        """
        self._config, self._subject = config, subject
        self._model = require_drawing(subject)
        # Without a length, as it is not known yet.
        cells = [
            Cell(split=split, frames=frames, sample=sample, length=0)
            for split, frames in config.groups
            for sample in range(config.samples)
        ]
        lengths = [self.question(cell).built_length for cell in cells]
        subject.require_context(max(lengths), remedy="lower frames")
        self.cells: Sequence[Cell] = [
            dataclasses.replace(cell, length=length)
            for cell, length in zip(cells, lengths, strict=True)
        ]
        """All cells."""

    def key(self, cell: Cell) -> Hashable:
        """Returns split, frames and number."""
        return cell.split, cell.frames, cell.sample

    def row_key(self, row: ResultRow) -> Hashable:
        """Returns the key of the cell that a result belongs to."""
        return row_key(row)

    def question(self, cell: Cell) -> Question:
        """Builds the request for an image or a video."""
        clip = self._clip(cell.split, cell.frames, cell.sample)
        kind: VisionKind = "video" if cell.frames > 1 else "image"
        made = self._encode.with_images(
            cell,
            request(clip.caption, kind).parts,
            max_tokens=self._model.grammar.size(cell.frames),
            frames=cell.frames,
            truth={"clip": clip},
        )
        if not self._config.sampled:
            return made
        own = VisionSampling().over(self._model.sampling)
        return dataclasses.replace(made, sampling=own, seed=cell.sample)

    @functools.cached_property
    def _encode(self) -> PromptEncoder:
        return self._subject.encoder

    def _clip(self, split: Split, frames: int, number: int) -> Clip:
        resolution = self._model.vision.resolution
        return World(self._config.world(split, frames, resolution)).clip(number)

    def row(self, question: Question, response: Response) -> dict[str, Any]:
        """Returns the result: what was asked for, what is seen, and in which attributes it agrees.

        `through_codes` is the agreement of the true clip once it is encoded and decoded: what the
        model could reach at most.
        """
        clip: Clip = question.truth["clip"]
        cell: Cell = question.cell
        codes = response.codes
        seen = None if codes is None else self._read(self._model.decode_frames(codes))
        best = self._model.decode_frames(self._model.encode_frames(clip.pixels))
        agrees = agreement(clip.facts, seen or _nothing(clip.facts))
        return {
            "task": f"{cell.split}, {cell.frames} frame{'s' * (cell.frames > 1)}",
            "split": cell.split,
            "frames": cell.frames,
            "sample": cell.sample,
            "answers": [clip.caption],
            "response": caption(seen) if seen and seen.things else "(nothing)",
            "score": float(agrees["all"]),
            "agrees": agrees,
            "through_codes": agreement(clip.facts, self._read(best)),
            "asked": clip.facts.to_json(),
            "seen": seen.to_json() if seen else None,
            "codes": [] if codes is None else codes.ravel().tolist(),
        }

    def _read(self, pixels: UInt8[np.ndarray, "T R R 3"]) -> Facts:
        return read_facts(pixels, fps=self._config.fps)

    def header(self) -> dict[str, Any]:
        """Returns what the answers depend on, and apart from it the grid, which may grow."""
        config = self._config
        return {
            "evaluation": "adherence",
            "model": dict(self._subject.description),
            "config": identity(config),
            "vqgan": self._model.vision.fingerprint,
            "grid": {
                "splits": sorted(set(config.splits)),
                "frames": sorted(set(config.frames)),
                "samples": config.samples,
            },
            "versions": {"lwm": lwm.__version__, "jax": jax.__version__},
            "files": self._subject.files,
        }

    def sheet(self, rows: Sequence[ResultRow]) -> UInt8[np.ndarray, "R S 3"]:
        """Returns a contact sheet: the middle frames of some clips, each above what was drawn."""
        chosen = np.linspace(0, len(rows) - 1, min(_SHOWN, len(rows))).astype(int)
        size = self._model.vision.resolution
        blank = np.full((size, size, 3), 255, np.uint8)
        shown: list[np.ndarray] = []
        for start in range(0, len(chosen), _COLUMNS):
            some = [rows[number] for number in chosen[start : start + _COLUMNS]]
            rest = [blank] * (_COLUMNS - len(some))
            shown += [*map(self._asked_frame, some), *rest, *map(self._drawn_frame, some), *rest]
        return contact_sheet(shown, _COLUMNS)

    def _asked_frame(self, row: ResultRow) -> UInt8[np.ndarray, "R R 3"]:
        clip = self._clip(row["split"], row["frames"], row["sample"])
        return clip.pixels[row["frames"] // 2]

    def _drawn_frame(self, row: ResultRow) -> UInt8[np.ndarray, "R R 3"]:
        codes = np.array(row["codes"], np.int32).reshape(row["frames"], -1)
        if not codes.size:
            return np.full_like(self._asked_frame(row), 255)
        return self._model.decode_frames(codes[row["frames"] // 2][None])[0]


def identity(config: AdherenceConfig) -> dict[str, Any]:
    """Returns what of a configuration decides a prompt and its answer."""
    backgrounds = None if config.backgrounds is None else list(config.backgrounds)
    fixed = {name: getattr(config, name) for name in ("seed", "fps", "most", "sampled")}
    return fixed | {"backgrounds": backgrounds}


def row_key(row: ResultRow) -> tuple[str, int, int]:
    """Returns split, frames and number of a result."""
    return row["split"], row["frames"], row["sample"]


def require_drawing(subject: Subject) -> LoadedModel:
    """Returns the model in this process, if it generates images.

    Raises:
        UserError: It does not.
    """
    model = subject.model
    if model is None:
        raise UserError(
            f"{subject.name} is not in this process, so that it is asked in text only; load it "
            "here to ask for images"
        )
    model.vision.require_decoder()
    return model


def _nothing(facts: Facts) -> Facts:
    return dataclasses.replace(facts, things=(), background="")
