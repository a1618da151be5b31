"""The grammar of ids: text, frames of vision codes, and the markers between them.

    text … <vision> c c … c EOF c c … c EOV text …

A grammar is static; the state of each row is data. Only sampled ids change it: a `<vision>` that a
user typed is in the prompt, which the grammar never reads.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from lwm.tokens import TokenSpace

_NO_LIMIT = 1 << 30
_Rows = Bool[Array | np.ndarray, " B"]
_Numbers = Int[Array | np.ndarray, " B"]
"""An entry per row: on a device, or on the host before the loop and after a burst."""


@runtime_checkable
class Grammar(Protocol):
    """Rules out ids, row by row. Hashable; its state is a tree of arrays with one entry per row.

    The decoding loop does not change the state of a row that is done. All but `advance` also take
    a state on the host.
    """

    def plain(self) -> Any:
        """Returns the state of one row that writes any text."""
        ...

    def in_vision(self, state: Any) -> _Rows:
        """Returns which rows write a vision id next; the others write a text id."""
        ...

    def in_video(self, state: Any) -> _Rows:
        """Returns which rows are in a frame after the first of a video."""
        ...

    def legal(self, state: Any) -> Bool[Array, "B V"]:
        """Returns which ids may come next: at least one of the row's modality."""
        ...

    def advance(self, state: Any, ids: Int[Array, " B"]) -> Any:
        """Returns the state after one more id of each row."""
        ...

    def is_done(self, state: Any) -> _Rows:
        """Returns which rows have ended."""
        ...

    def is_complete(self, state: Any) -> _Rows:
        """Returns which rows have ended and have all that was asked for."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameLimits:
    """Limits on the images and videos of one row."""

    least: int = 1
    """Frames per image or video, at least."""
    most: int | None = None
    """Frames per image or video, at most; None: no limit; 0: text only."""
    inside: bool = False
    """The prompt ends inside an image or video: the next id is the first code of a frame."""
    given: int = 0
    """Whole frames of it in the prompt, which count."""
    is_all: bool = False
    """The row is done after the first image or video."""
    is_plain: bool = False
    """The row writes any text, in which `<vision>` opens nothing."""

    def __post_init__(self):
        """Refuses limits that contradict each other."""
        if self.least < 1 or (self.most and self.most < self.least) or (self.most or 0) < 0:
            raise ValueError(f"no image has from {self.least} to {self.most} frames")
        if self.inside and self.most == 0:
            raise ValueError("the prompt ends in vision, but no frame is allowed")
        if self.given and not (self.inside and self.given < self.least):
            raise ValueError(f"of {self.least} frames or more, {self.given} cannot be given")

    @classmethod
    def exactly(cls, count: int, *, given: int = 0) -> "FrameLimits":
        """Returns the limits of one image or video that the prompt has begun, and no text after it.

        Args:
            count: Frames of the whole image or video.
            given: Frames of it in the prompt.
        """
        return cls(least=count, most=count, inside=True, given=given, is_all=True)


TEXT_ONLY = FrameLimits(most=0)
"""Text in which `<vision>` cannot be completed."""
PLAIN = FrameLimits(is_plain=True)
"""Text in which `<vision>` means nothing."""


class VisionState(NamedTuple):
    """Position of each row in the grammar, and its limits."""

    recent: Int[Array | np.ndarray, "B L"]
    """The last sampled ids, -1 before the first; a vision id is in no opening."""
    place: _Numbers
    """Codes written in this frame; -1 in text."""
    frames: _Numbers
    """Whole frames written in this image or video."""
    size: _Numbers
    """Codes of a frame."""
    left: _Numbers
    """Ids that the row may still write."""
    least: _Numbers
    most: _Numbers
    is_all: _Rows
    is_plain: _Rows
    is_done: _Rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionGrammar:
    """LWM's format: text until a sampled `<vision>` is complete, whole frames, then text again."""

    tokens: TokenSpace
    opening: tuple[tuple[int, ...], ...]
    """All sequences of text ids that decode to `<vision>`."""
    tokens_per_frame: int = dataclasses.field(compare=False)
    """Enters programs by the state of each row: one program serves all sizes."""

    def __post_init__(self):
        """Refuses an opening that is not of text, and a space without vision."""
        if not self.tokens.vision or self.tokens_per_frame < 1:
            raise ValueError(
                f"{self.tokens.vision} vision ids, {self.tokens_per_frame} to a frame, make none"
            )
        for run in self.opening:
            if not run or min(run) < 0 or max(run) >= self.tokens.text:
                raise ValueError(f"opening {run} is no run of text ids")

    def start(self, rows: Sequence[FrameLimits], *, room: int | None = None) -> VisionState:
        """Returns the state before the first id.

        Args:
            rows: Limits of each row.
            room: Ids that will be written at most, if known. A frame that would not be complete,
                its marker included, is not begun; a row that opens one is done.

        Raises:
            ValueError: There is no room for the frames that must come.
        """
        for frames in rows:
            wanted = frames.least - frames.given
            if room is not None and frames.inside and room < self.size(wanted):
                raise ValueError(f"{wanted} frames are {self.size(wanted)} ids, not {room}")
        count = len(rows)
        most = [_NO_LIMIT if frames.most is None else frames.most for frames in rows]
        return VisionState(
            recent=np.full((count, self._longest), -1, np.int32),
            place=np.array([0 if frames.inside else -1 for frames in rows], np.int32),
            frames=np.array([frames.given for frames in rows], np.int32),
            size=np.full(count, self.tokens_per_frame, np.int32),
            left=np.full(count, _NO_LIMIT if room is None else room, np.int32),
            least=np.array([frames.least for frames in rows], np.int32),
            most=np.array(most, np.int32),
            is_all=np.array([frames.is_all for frames in rows], bool),
            is_plain=np.array([frames.is_plain for frames in rows], bool),
            is_done=np.zeros(count, bool),
        )

    def plain(self) -> VisionState:
        """Returns the state of one row that writes any text, in which `<vision>` opens nothing."""
        return self.start([PLAIN])

    def size(self, frames: int) -> int:
        """Counts the ids of so many frames, the marker after each included."""
        return frames * (self.tokens_per_frame + 1)

    def in_vision(self, state: VisionState) -> _Rows:
        """Returns which rows are between `<vision>` and the end of vision."""
        return state.place >= 0

    def in_video(self, state: VisionState) -> _Rows:
        """Returns which rows are in a frame after the first."""
        return self.in_vision(state) & (state.frames > 0)

    def legal(self, state: VisionState) -> Bool[Array, "B V"]:
        """Allows text, or a code, or a marker."""
        ids = jnp.arange(self.tokens.size)[None, :]
        codes = (ids >= self.tokens.text) & (ids < self.tokens.end_of_frame)
        goes_on, ends = self._markers(state)
        markers = (ids == self.tokens.end_of_frame) & goes_on[:, None]
        markers |= (ids == self.tokens.end_of_vision) & ends[:, None]
        text = (ids < self.tokens.text) & ~self._forbidden(state, ids)
        in_frame = state.place < state.size
        vision = jnp.where(in_frame[:, None], codes, markers)
        return jnp.where(self.in_vision(state)[:, None], vision, text)

    def advance(self, state: VisionState, ids: Int[Array, " B"]) -> VisionState:
        """Counts codes and frames, and matches text against `<vision>`."""
        in_text = ~self.in_vision(state)
        recent = jnp.concatenate([state.recent[:, 1:], ids[:, None]], axis=1)
        met = in_text & ~state.is_plain & self._is_opening(recent)
        has_room = self._has_room(state)
        opens, is_cut = met & has_room, met & ~has_room
        ended = state.place == state.size
        place = jnp.where(in_text, -1, state.place + 1)
        place = jnp.where(ended, jnp.where(ids == self.tokens.end_of_vision, -1, 0), place)
        return state._replace(
            recent=recent,
            place=jnp.where(opens, 0, place),
            frames=jnp.where(opens, 0, state.frames + ended),
            left=state.left - 1,
            is_done=state.is_done | is_cut | (ended & (place < 0) & state.is_all),
        )

    def is_done(self, state: VisionState) -> _Rows:
        """Returns which rows have all their frames, or no room for one that they opened."""
        return state.is_done

    def is_complete(self, state: VisionState) -> _Rows:
        """Returns which rows have all their frames."""
        return state.is_done & state.is_all

    @property
    def _longest(self) -> int:
        return max(map(len, self.opening), default=1)

    def _markers(self, state: VisionState) -> tuple[_Rows, _Rows]:
        """Returns which rows may write another frame after this one, and which may end."""
        done = state.frames + 1
        goes_on = (done < state.most) & (state.left - 1 >= state.size + 1)
        return goes_on, (done >= state.least) | ~goes_on

    def _has_room(self, state: VisionState) -> _Rows:
        return state.left - 1 >= state.least * (state.size + 1)

    def _is_opening(self, recent: Int[Array, "B L"]) -> _Rows:
        found = jnp.zeros(recent.shape[0], bool)
        for run in self.opening:
            tail = recent[:, self._longest - len(run) :]
            found |= jnp.all(tail == jnp.array(run), axis=1)
        return found

    def _forbidden(self, state: VisionState, ids: Int[Array, "1 V"]) -> Bool[Array, "B V"]:
        """Returns which ids would complete `<vision>` in rows of text only."""
        last = jnp.zeros((state.place.shape[0], ids.shape[1]), bool)
        for run in self.opening:
            tail = state.recent[:, self._longest + 1 - len(run) :]
            at_brink = jnp.all(tail == jnp.array(run[:-1], jnp.int32), axis=1)
            last |= at_brink[:, None] & (ids == run[-1])
        return last & (state.most == 0)[:, None]
