"""Arrays of the rows in the slots of a lane, which are decoded together."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from lwm.generate.decoding import Burst, Guidance, RowInputs, RowState, Seen, Tops, burst
from lwm.generate.grammar import Grammar
from lwm.generate.pages import Holding
from lwm.generate.plan import GenerationPlan
from lwm.generate.sampling import GREEDY, Edits, RowSampling, Sampler
from lwm.generate.work import Written
from lwm.model.llama import Llama
from lwm.model.pool import PagePool, Place, table_width
from lwm.sampling_params import BIASES
from lwm.sharding import put


class Block(NamedTuple):
    """Ids written to the rows of a lane by one call."""

    ids: Int[np.ndarray, "B C"]
    """-1 after the end of a row."""
    logprobs: Float[np.ndarray, "B C"]
    tops: Tops | None
    """The likeliest ids at each step, if any row asks for them."""

    def of(self, slot: int, tops: int) -> Written:
        """Returns what has been written to a row, with so many of the likeliest ids."""
        count = int(np.sum(self.ids[slot] >= 0))
        ids, logprobs = (each[slot, :count].tolist() for each in (self.ids, self.logprobs))
        if not tops or self.tops is None:
            return Written(ids, logprobs)
        return Written(ids, logprobs, likeliest(self.tops, (slot, slice(count)), tops))


def likeliest(tops: Tops, places: Any, count: int) -> list[list[tuple[int, float]]]:
    """Returns the first so many ids at each of some places, with their log-probabilities."""
    ids, logprobs = (each[places][:, :count].tolist() for each in tops)
    return [
        [(token, logprob) for token, logprob in zip(*row, strict=True) if logprob > -np.inf]
        for row in zip(ids, logprobs, strict=True)
    ]


class Slots:
    """Slots of one compiled decoding loop; all that differs between their rows is data.

    XLA for CPU gives a row other bits in a batch of one row than in a larger one, so a lane never
    changes its width.
    """

    def __init__(
        self, model: Llama, mesh: Mesh, width: int, *, grammar: Grammar | None, stop_places: int
    ):
        """Starts with empty slots.

        Args:
            model: The model.
            mesh: Its mesh, whose dp and fsdp divide the width.
            width: Number of slots.
            grammar: Rules which id may follow which; None: text only.
            stop_places: Stop ids of a row at most.
        """
        config = model.config
        self._model, self._grammar, self._text = model, grammar, config.tokens.text

        def zeros(*shape: int, dtype: type = np.int32) -> np.ndarray:
            return np.zeros((width, *shape), dtype)

        self._rows = RowState(
            place=Place(zeros(table_width(config.max_context)), zeros(), zeros()),
            last=zeros(),
            count=zeros(),
            left=zeros(),
            done=np.ones(width, bool),
            grammar=None,
        )
        if grammar is not None:
            plain = jax.tree.map(lambda leaf: np.repeat(leaf, width, 0), grammar.plain())
            self._rows = self._rows._replace(grammar=plain)
        greedy = RowSampling.of([GREEDY] * width)
        self._inputs = RowInputs(
            text=greedy,
            image=jax.tree.map(np.copy, greedy),
            video=jax.tree.map(np.copy, greedy),
            seeds=zeros(dtype=np.uint32),
            stops=np.full((width, stop_places), -1, np.int32),
            guidance=None if grammar is None else Guidance.none(width),
            least=zeros(),
            edits=Edits(
                bias_ids=np.full((width, BIASES), -1, np.int32),
                bias=zeros(BIASES, dtype=np.float32),
                presence=zeros(dtype=np.float32),
                frequency=zeros(dtype=np.float32),
                banned=zeros(0),
                counts=zeros(0),
            ),
            tops=zeros(dtype=bool),
        )
        # Replicated over the devices, as the loop returns it, to avoid a second trace.
        seen = zeros(self._text, dtype=bool), zeros(self._text)
        self._seen = Seen(*(put(each, mesh, P(None, None)) for each in seen))

    def seat(
        self,
        slot: int,
        plan: GenerationPlan,
        prompt: Sequence[int],
        holding: Holding,
        *,
        state: Any = None,
        leader: int | None = None,
    ) -> None:
        """Puts a row into a slot; its prompt is in its pages, without the last id.

        Args:
            slot: The slot.
            plan: The row's plan.
            prompt: Ids of its prompt.
            holding: Its pages.
            state: The row's state in the grammar, as a batch of one; it is needed with a grammar.
            leader: The slot of the row that this one is the unconditional row of.
        """
        rows, inputs = self._rows, self._inputs
        rows.place.pages[slot] = 0
        rows.place.pages[slot, : len(holding.pages)] = holding.pages
        rows.place.offsets[slot] = holding.offset
        rows.place.lengths[slot] = len(prompt) - 1
        rows.last[slot], rows.count[slot], rows.left[slot] = prompt[-1], 0, plan.max_tokens
        rows.done[slot] = False
        if self._grammar is not None:
            self._seat_vision(slot, plan, state, slot if leader is None else leader)
        self._set_rules(slot, plan)
        if inputs.text.penalty[slot] != 1 or plan.presence_penalty or plan.frequency_penalty:
            seen = np.zeros(self._text, bool)
            ids = np.asarray(prompt)
            seen[ids[ids < self._text]] = True
            self._seen = _set_row(self._seen, slot, seen)

    def empty(self, slot: int) -> None:
        """Takes the row out of a slot."""
        self._rows.done[slot] = True
        self._set_rules(slot, _NOTHING)  # else they would cost time until the next row comes
        if self._inputs.guidance is not None:
            self._inputs.guidance.leader[slot] = self._inputs.guidance.away_from[slot] = slot

    def decode(self, pool: PagePool, steps: int) -> tuple[PagePool, Block]:
        """Writes up to so many ids to each row.

        The pool is deleted, also if this fails.
        """
        rows = self._rows
        found: Burst = burst(
            self._model, pool, self._seen, rows, steps, self._inputs, grammar=self._grammar
        )
        self._seen = found.seen
        # Waits for the device. Pages and inputs are the host's own.
        place = rows.place._replace(lengths=found.rows.place.lengths)
        self._rows = jax.tree.map(np.array, found.rows._replace(place=place))
        taken = int(found.steps)
        ids, logprobs = (np.asarray(each)[:, :taken] for each in (found.ids, found.logprobs))
        tops = jax.tree.map(np.asarray, found.tops) if np.any(self._inputs.tops) else None
        return found.pool, Block(ids, logprobs, tops)

    def warm_up(self, pool: PagePool) -> PagePool:
        """Compiles the programs of empty slots; the pool is deleted, and returned as it was."""
        self._seen = _set_row(self._seen, 0, np.zeros(self._text, bool))
        return self.decode(pool, 1)[0]

    def count(self, slot: int) -> int:
        """Returns the number of ids that have been written to a row."""
        return int(self._rows.count[slot])

    def is_done(self, slot: int) -> bool:
        """Returns whether a row has ended, or the slot holds none."""
        return bool(self._rows.done[slot])

    def is_complete(self, slot: int) -> bool:
        """Returns whether a row has ended because its grammar wants no more."""
        grammar, state = self._grammar, self._rows.grammar
        return grammar is not None and bool(grammar.is_complete(state)[slot])

    def _set_rules(self, slot: int, plan: GenerationPlan) -> None:
        """Sets all that a plan says about text."""
        inputs, edits = self._inputs, self._inputs.edits
        _set(inputs.text, slot, plan.sampler)
        inputs.seeds[slot] = plan.seed
        inputs.stops[slot] = -1
        inputs.stops[slot, : len(plan.stop_ids)] = sorted(plan.stop_ids)
        inputs.least[slot], inputs.tops[slot] = plan.min_tokens, plan.top_logprobs > 0
        edits.presence[slot] = plan.presence_penalty
        edits.frequency[slot] = plan.frequency_penalty
        edits.bias_ids[slot], edits.bias[slot] = -1, 0
        count = len(plan.logit_bias)
        edits.bias_ids[slot, :count] = list(plan.logit_bias)
        edits.bias[slot, :count] = list(plan.logit_bias.values())

    def _seat_vision(self, slot: int, plan: GenerationPlan, state: Any, leader: int) -> None:
        jax.tree.map(_put(slot), self._rows.grammar, state)
        vision, inputs, guidance = plan.vision, self._inputs, self._inputs.guidance
        image = plan.sampler if vision is None or vision.image is None else vision.image
        _set(inputs.image, slot, image)
        _set(inputs.video, slot, image if vision is None or vision.video is None else vision.video)
        assert guidance is not None
        guidance.leader[slot], guidance.away_from[slot] = leader, slot
        guidance.image[slot] = guidance.video[slot] = 1
        if leader != slot and vision is not None:
            later = vision.video_guidance
            guidance.away_from[leader] = slot
            guidance.image[leader] = vision.guidance
            guidance.video[leader] = vision.guidance if later is None else later


_NOTHING = GenerationPlan(max_tokens=0)


def _set(values: RowSampling, slot: int, sampler: Sampler) -> None:
    jax.tree.map(_put(slot), values, RowSampling.of([sampler]))


def _put(slot: int):
    def put(whole: np.ndarray, one: Any) -> None:
        whole[slot] = np.asarray(one)[0]

    return put


@partial(jax.jit, donate_argnames="seen")
def _set_row(seen: Seen, row: Int[Array, ""], values: Bool[Array, " V"]) -> Seen:
    return Seen(seen.ids.at[row].set(values), seen.counts.at[row].set(0))
