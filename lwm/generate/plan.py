"""Plans of generation: what the engine writes to a batch, lowered to arrays per row."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np

from lwm.generate.decoding import Guidance, RowInputs
from lwm.generate.grammar import Grammar
from lwm.generate.sampling import GREEDY, RowSampling, Sampler

_STOPS = 8
"""Places for stop ids, or a power of two times as many: few shapes, so few compiled programs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionPlan:
    """Images and videos that rows write, beside text."""

    grammar: Grammar
    """Rules which id may follow which."""
    state: Any
    """The state of each row in the grammar; `Session.state` continues from the last call."""
    image: Sampler | Sequence[Sampler] | None = None
    """Chooses codes of the first frame of an image or video; None: as for text."""
    video: Sampler | Sequence[Sampler] | None = None
    """Chooses codes of the frames after it; None: as for the first."""
    guidance: float | Sequence[float] | None = None
    """Classifier-free guidance scale of the first frame, for all pairs of rows or for each pair.

    Row n + i of 2n rows is then row i without its condition; both write the ids that are chosen
    for row i, whose seed, state and end count for both. 1 changes nothing; None: no pairs.
    """
    video_guidance: float | Sequence[float] | None = None
    """The scale of the frames after it; None: as for the first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationPlan:
    """Ids to write after the prompts of a batch; a value is for all rows, or one per row."""

    max_tokens: int
    """Ids to write to each row at most."""
    stop_ids: Collection[int] = ()
    """Ids that end a row."""
    sampler: Sampler | Sequence[Sampler] = GREEDY
    """Chooses text ids."""
    seed: int | Sequence[int] = 0
    """From 0 to 2³² - 1; what a row samples depends on its seed and not on other rows."""
    vision: VisionPlan | None = None
    """None: text only."""

    @property
    def grammar(self) -> Grammar | None:
        """The vision plan's grammar."""
        return None if self.vision is None else self.vision.grammar

    def check(self, rows: int) -> None:
        """Refuses a plan that does not fit a batch.

        Raises:
            ValueError: Samplers, seeds, state or guidance are for another number of rows.
        """
        vision = self.vision
        of_vision = () if vision is None else (vision.image, vision.video)
        for each in (self.sampler, self.seed, *of_vision):
            if isinstance(each, Sequence) and len(each) != rows:
                raise ValueError(f"{len(each)} samplers or seeds for {rows} rows")
        if vision is None:
            return
        lengths = {len(leaf) for leaf in jax.tree.leaves(vision.state)}
        if lengths != {rows}:
            raise ValueError(f"a grammar needs a state of {rows} rows, not {sorted(lengths)}")
        guidance = vision.guidance
        scales = 1 if guidance is None else np.size(np.asarray(guidance))
        if guidance is not None and (rows % 2 or scales not in (1, rows // 2)):
            raise ValueError(f"{scales} scales of guidance do not pair {rows} rows")

    def lower(self, rows: int, padded_rows: int) -> tuple[RowInputs, Any]:
        """Returns the inputs of the decoding loop and the grammar's state, for all padded rows."""
        guidance = self._guidance(rows, padded_rows)
        leader = np.arange(padded_rows) if guidance is None else np.asarray(guidance.leader)

        def each(values: Any) -> np.ndarray:
            return np.asarray(values)[np.minimum(leader, rows - 1)]

        def values(sampler: Sampler | Sequence[Sampler]) -> RowSampling:
            each_row = [sampler] * rows if isinstance(sampler, Sampler) else sampler
            return jax.tree.map(each, RowSampling.of(each_row))

        vision = self.vision
        image = self.sampler if vision is None or vision.image is None else vision.image
        video = image if vision is None or vision.video is None else vision.video
        width = max(_STOPS, 1 << (len(self.stop_ids) - 1).bit_length())
        stops = np.full((padded_rows, width), -1, np.int32)
        stops[:, : len(self.stop_ids)] = sorted(self.stop_ids)
        inputs = RowInputs(
            text=values(self.sampler),
            image=values(image),
            video=values(video),
            seeds=each(np.broadcast_to(np.asarray(self.seed, np.uint32), rows)),
            stops=stops,
            guidance=guidance,
        )
        return inputs, None if vision is None else jax.tree.map(each, vision.state)

    def _guidance(self, rows: int, padded_rows: int) -> Guidance | None:
        vision = self.vision
        if vision is None or vision.guidance is None:
            return None
        image = vision.guidance
        video = image if vision.video_guidance is None else vision.video_guidance
        first, later = (
            np.broadcast_to(np.asarray(scale, np.float32), rows // 2).tolist()
            for scale in (image, video)
        )
        return Guidance.of_pairs(first, padded_rows, later)
