"""Prompts of the visual needle test: a question, and a video of so many frames with the needle."""

import dataclasses
import functools
import random
from collections.abc import Sequence

import numpy as np

from lwm.errors import UserError
from lwm.eval.question import Question
from lwm.eval.subject import Subject
from lwm.eval.visual_needle.config import VisualNeedleConfig
from lwm.eval.visual_needle.haystack import open_haystack
from lwm.eval.visual_needle.needles import Needle, open_needles
from lwm.generate.loaded import LoadedModel
from lwm.progress import Progress
from lwm.tokenizer.message import Vision


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One question: its place in the grid, and its round."""

    frames: int
    depth: float
    round: int
    length: int
    """Tokens of prompt and answer at most, which are the same for all cells of so many frames."""

    @property
    def place(self) -> int:
        """Frames before the needle."""
        return int((self.frames - 1) * self.depth / 100)


class Prompts:
    """Builds the prompt of each cell."""

    def __init__(
        self,
        config: VisualNeedleConfig,
        subject: Subject,
        model: LoadedModel,
        *,
        progress: Progress = lambda done, total: None,
    ):
        """Opens haystack and needles.

        Args:
            config: The grid.
            subject: Answers; its encoder writes prompts.
            model: Encodes the frames.
            progress: Called with 0 and the tokens of all cells, as a video file is read; may raise.

        Raises:
            UserError: A file cannot be read, the model reads no images, or the frames are more
                than its context has room for.
        """
        self.config, self._encode = config, subject.encoder
        self._size = model.vision.tokens_per_frame
        self.needles = open_needles(config, model)
        self._require_room(subject)
        cells = [
            Cell(frames=frames, depth=depth, round=round, length=self.length(frames))
            for frames in config.all_frames
            for depth in config.all_depths
            for round in range(config.rounds)
        ]
        # The deepest needle first: each prompt then shares its start with the one before.
        self.cells: Sequence[Cell] = sorted(
            cells, key=lambda cell: (cell.round, -cell.place, -cell.frames)
        )
        """All cells, in an order that shares the longest prefixes."""
        total = sum(cell.length for cell in cells)
        self.haystack = open_haystack(config, model, between=lambda: progress(0, total))

    @property
    def answer_tokens(self) -> int:
        """Tokens of an answer at most."""
        return self.config.max_tokens if self.config.task == "ask" else self._size + 1

    def length(self, frames: int) -> int:
        """Returns the tokens of prompt and answer, with the question that has the most."""
        return self._bare + frames * (self._size + 1)

    @functools.cached_property
    def _bare(self) -> int:
        codes = np.zeros((1, self._size), np.int32)
        asked = (self._question(each, codes, None) for each in set(self.needles.questions))
        return max(each.built_length for each in asked) - (self._size + 1)

    def _require_room(self, subject: Subject) -> None:
        frames, context = max(self.config.frames), subject.context
        if context is not None and self.length(frames) > context:
            most = (context - self._bare) // (self._size + 1)
            raise UserError(
                f"{frames:,} frames are {self.length(frames):,} tokens, above the context of "
                f"{subject.name}, {context:,}; ask for at most {most:,} with --frames"
            )

    def needle(self, cell: Cell) -> Needle:
        """Returns the needle of a cell."""
        return self._chosen[cell]

    @functools.cached_property
    def _chosen(self) -> dict[Cell, Needle]:
        names = (f"{cell.frames}/{cell.depth:g}/{cell.round}" for cell in self.cells)
        generators = [random.Random(f"{self.config.seed}/{name}") for name in names]
        return dict(zip(self.cells, self.needles.choose(generators), strict=True))

    def build(self, cell: Cell) -> Question:
        """Returns the question of a cell."""
        needle = self.needle(cell)
        around = self.haystack.codes(cell.round, cell.frames - 1)
        codes = np.concatenate([around[: cell.place], needle.codes[None], around[cell.place :]])
        return self._question(needle.question, codes, cell, needle=needle, haystack=around)

    def _question(
        self, question: str, codes: np.ndarray, cell: Cell | None, **truth: object
    ) -> Question:
        return self._encode.with_images(
            cell,
            (question, Vision(codes=codes, is_video=True)),
            max_tokens=self.answer_tokens,
            frames=0 if self.config.task == "ask" else 1,
            truth=truth,
        )


def require_images(subject: Subject, *, draws: bool = False) -> LoadedModel:
    """Returns the model of a subject, which reads images, and generates them if it is asked to.

    Raises:
        UserError: It is not in this process, or reads text only, or has no VQGAN or no decoder.
    """
    model = subject.model
    if model is None:
        raise UserError(
            f"{subject.name} is asked in text only; images need a model in this process"
        )
    if draws:
        model.vision.require_decoder()
    return model


def frames_within(config: VisualNeedleConfig, subject: Subject) -> tuple[int, ...]:
    """Returns the numbers of frames that the context has room for.

    Raises:
        UserError: It has none for a needle and one frame more; see `Prompts`.
    """
    least = dataclasses.replace(config, frames=(2,))
    length = Prompts(least, subject, require_images(subject)).length
    context = subject.context
    return tuple(n for n in config.all_frames if context is None or length(n) <= context)
