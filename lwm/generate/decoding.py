"""The compiled decoding loop: logits, guidance, grammar, choice of an id, and the next step."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P, reshard
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from lwm.generate.grammar import Grammar
from lwm.generate.sampling import Edits, RowSampling, choose
from lwm.model.llama import Llama
from lwm.model.pool import PagePool, Place
from lwm.sampling_params import TOPS
from lwm.sharding import BATCH, ROW, ROWS
from lwm.tokens import TokenSpace

BURST = 32
"""Ids that one call of the compiled loop writes at most, after which rows may come and go."""


class Guidance(NamedTuple):
    """Pairs of rows for classifier-free guidance (Ho and Salimans 2022), as data."""

    leader: Int[Array | np.ndarray, " B"]
    """The row whose ids each row writes: itself, or the row that it guides."""
    away_from: Int[Array | np.ndarray, " B"]
    """The unconditional row, or the row itself."""
    image: Float[Array | np.ndarray, " B"]
    """The scale for the first frame of an image or video."""
    video: Float[Array | np.ndarray, " B"]
    """The scale for the frames after it."""

    @classmethod
    def none(cls, rows: int) -> "Guidance":
        """Guides no row."""
        alone = np.arange(rows, dtype=np.int32)
        return cls(alone, alone.copy(), *np.ones((2, rows), np.float32))


def guide(
    logits: Float[Array, "B V"], guidance: Guidance, scale: Float[Array | np.ndarray, " B"]
) -> Float[Array, "B V"]:
    """Returns uncond + scale · (cond - uncond), written so that scale 1 changes no bit."""
    return logits + (scale[:, None] - 1) * (logits - logits[guidance.away_from])


class RowInputs(NamedTuple):
    """All that differs between requests, as data; arrays have an entry per row."""

    text: RowSampling
    image: RowSampling
    """For the first frame of an image or video."""
    video: RowSampling
    """For the frames after it."""
    seeds: UInt32[Array | np.ndarray, " B"]
    stops: Int[Array | np.ndarray, "B E"]
    """Ids that end a row, padded with -1."""
    guidance: Guidance | None
    least: Int[Array | np.ndarray, " B"]
    """Ids before which no stop id is written."""
    edits: Edits
    """Of text, without those that change as a row goes on."""
    tops: Bool[Array | np.ndarray, " B"]
    """Rows that ask for the likeliest ids."""


class Seen(NamedTuple):
    """Text ids that each row has had."""

    ids: Bool[Array, "B V"]
    """True for ids that it has read or written."""
    counts: Int[Array, "B V"]
    """How many times it has written each."""

    def add(self, ids: Int[Array, " B"]) -> "Seen":
        """Adds an id that each row has written; those of vision are left out."""
        rows = jnp.arange(len(ids))
        return Seen(
            self.ids.at[rows, ids].set(True, mode="drop"),
            self.counts.at[rows, ids].add(1, mode="drop"),
        )


class Tops(NamedTuple):
    """The likeliest ids and their log-probabilities, of equals the lower id first."""

    ids: Int[Array | np.ndarray, "*B K"]
    logprobs: Float[Array | np.ndarray, "*B K"]
    """-inf where fewer ids may come next."""

    @classmethod
    def empty(cls, *shape: int) -> "Tops":
        """Returns none, for an array of rows."""
        return cls(jnp.zeros((*shape, TOPS), jnp.int32), jnp.full((*shape, TOPS), -jnp.inf))


class Scale(NamedTuple):
    """All that turns the logits of a row into log-probabilities."""

    peak: Float[Array, "*B"]
    lse: Float[Array, "*B"]

    @classmethod
    def of(cls, logits: Float[Array, "*B V"]) -> "Scale":
        """Measures rows of logits, as `jax.nn.log_softmax` does."""
        peak = jnp.max(logits, axis=-1)
        return cls(peak, jnp.log(jnp.sum(jnp.exp(logits - peak[..., None]), axis=-1)))

    def logprobs(self, logits: Float[Array, "*B K"]) -> Float[Array, "*B K"]:
        """Returns the log-probabilities of ids with these logits."""
        return logits - self.peak[..., None] - self.lse[..., None]

    def tops(self, logits: Float[Array, "*B V"]) -> Tops:
        """Returns the likeliest ids, with the bits of `logprobs`."""
        count = min(TOPS, logits.shape[-1])
        values, ids = jax.lax.top_k(logits, count)
        pad = [(0, 0)] * (logits.ndim - 1) + [(0, TOPS - count)]
        logprobs = jnp.pad(self.logprobs(values), pad, constant_values=-jnp.inf)
        return Tops(jnp.pad(ids, pad), logprobs)


class Chosen(NamedTuple):
    """An id per row, and how likely it and others are in the row's own distribution.

    That distribution is over the legal ids of the row's modality, before guidance and rules.
    """

    ids: Int[Array, " B"]
    logprobs: Float[Array, " B"]
    scale: Scale


def choose_ids(
    logits: Float[Array, "B R"],
    inputs: RowInputs,
    grammar: Grammar | None,
    *,
    tokens: TokenSpace,
    seen: Seen,
    keys: Key[Array, " B"],
    count: Int[Array | np.ndarray, " B"],
    done: Bool[Array | np.ndarray, " B"],
    state: Any = None,
) -> tuple[Chosen, Tops]:
    """Chooses one id per row; also returns the likeliest ids of rows that ask for them.

    Without a grammar all rows write text, and the logits of vision ids are not read.
    """
    split, end, guidance = tokens.text, tokens.size, inputs.guidance
    text = logits[:, :split]
    banned = jnp.where((count < inputs.least)[:, None], inputs.stops, -1)
    edits = inputs.edits._replace(banned=banned, counts=seen.counts)

    def tops(chosen: Chosen) -> Tops:
        def find():
            allowed = text if grammar is None else jnp.where(legal, logits[:, :end], -jnp.inf)
            return chosen.scale.tops(allowed)

        return jax.lax.cond(jnp.any(inputs.tops & ~done), find, lambda: Tops.empty(len(logits)))

    if grammar is None:
        chosen = _choose(inputs.text, text, text, seen.ids, keys, guidance, edits)
        return chosen, tops(chosen)
    vision = logits[:, split:end]
    in_vision, legal = grammar.in_vision(state), grammar.legal(state)
    later = in_vision & grammar.in_video(state)

    def write():
        # A row of the other modality keeps its logits: no row is all -inf.
        own = jnp.where(legal[:, :split] | in_vision[:, None], text, -jnp.inf)
        return _choose(inputs.text, own, own, seen.ids, keys, guidance, edits)

    def sample_code():
        allowed = legal[:, split:] | ~in_vision[:, None]
        own = jnp.where(allowed, vision, -jnp.inf)
        guided = own
        if guidance is not None:
            scale = jnp.where(later, guidance.video, guidance.image)
            guided = jnp.where(allowed, guide(vision, guidance, scale), -jnp.inf)
        sampling = _where(later, inputs.video, inputs.image)
        # Frames repeat codes (a sky does): the repetition penalty is for text only.
        unseen = jnp.zeros(vision.shape, bool)
        found = _choose(sampling, own, guided, unseen, keys, guidance)
        return found._replace(ids=split + found.ids)

    def skip():
        nothing = jnp.zeros(done.shape)
        return Chosen(jnp.zeros(done.shape, jnp.int32), nothing, Scale(nothing, nothing))

    chosen = skip()
    for rows, choice in ((~in_vision, write), (in_vision, sample_code)):
        found = jax.lax.cond(jnp.any(rows & ~done), choice, skip)
        chosen = _where(rows, found, chosen)
    return chosen, tops(chosen)


def _choose(
    sampling: RowSampling,
    own: Float[Array, "B V"],
    guided: Float[Array, "B V"],
    seen: Bool[Array, "B V"],
    keys: Key[Array, " B"],
    guidance: Guidance | None,
    edits: Edits | None = None,
) -> Chosen:
    ids = choose(guided, sampling, seen=seen, keys=keys, edits=edits)
    if guidance is not None:
        ids = ids[guidance.leader]
    scale = Scale.of(own)
    return Chosen(ids, scale.logprobs(jnp.take_along_axis(own, ids[:, None], axis=1))[:, 0], scale)


class RowState(NamedTuple):
    """State of each slot of a lane, as data; a burst returns the next one."""

    place: Place
    last: Int[Array | np.ndarray, " B"]
    """The last id of each row, which is not in its pages yet."""
    count: Int[Array | np.ndarray, " B"]
    """Ids written to each row, by which its random keys count."""
    left: Int[Array | np.ndarray, " B"]
    """Ids that each row may still write."""
    done: Bool[Array | np.ndarray, " B"]
    """Rows that have ended, and slots that hold none."""
    grammar: Any
    """The state of each row in the grammar."""


class Burst(NamedTuple):
    """State of the decoding loop, and its result."""

    steps: Int[Array, ""]
    """Steps taken."""
    pool: PagePool
    seen: Seen
    rows: RowState
    ids: Int[Array, "B C"]
    """Ids written, -1 after the end of a row."""
    logprobs: Float[Array, "B C"]
    """Natural logarithms, in the row's own distribution over the ids that may come next: before
    guidance and all sampling rules."""
    tops: Tops
    """The likeliest ids in that distribution at each step, `[B, C, K]`, of rows that ask."""


@functools.partial(jax.jit, static_argnames="grammar", donate_argnames=("pool", "seen"))
def burst(
    model: Llama,
    pool: PagePool,
    seen: Seen,
    rows: RowState,
    steps: Int[Array, ""] | int,
    inputs: RowInputs,
    *,
    grammar: Grammar | None,
) -> Burst:
    """Writes up to `steps` ids to each row, at most `BURST`; fewer if all rows end.

    A step reads the last id of each row, then chooses the next. Its random key is the row's seed
    folded with the number of ids that the row has written.
    """
    slots = len(rows.last)
    row_keys = jax.vmap(jax.random.key)(inputs.seeds)

    def going(now: Burst):
        return (now.steps < steps) & ~jnp.all(now.rows.done)

    def step(now: Burst) -> Burst:
        i, row = now.steps, now.rows
        done = row.done
        # A slot without a row writes to page 0, and attends to its first token only.
        place = Place(
            reshard(jnp.where(done[:, None], 0, row.place.pages), ROWS),
            reshard(jnp.where(done, 0, row.place.lengths), ROW),
            reshard(row.place.offsets, ROW),
        )
        x, pool = model.extend(reshard(row.last[:, None], ROWS), place, now.pool)
        # All devices choose the same ids from all logits: no collective inside a sort.
        logits = reshard(model.logits(model.norm(x))[:, 0], P())
        found, tops = choose_ids(
            logits,
            inputs,
            grammar,
            tokens=model.config.tokens,
            seen=now.seen,
            keys=jax.vmap(jax.random.fold_in)(row_keys, row.count),
            count=row.count,
            done=done,
            state=row.grammar,
        )
        state, chosen = row.grammar, found.ids
        stopped = jnp.any(chosen[:, None] == inputs.stops, axis=1) | (row.left <= 1)
        if grammar is not None:
            state = _where(done, state, grammar.advance(state, chosen))
            stopped |= grammar.is_done(state)
        on = jnp.where(done, 0, 1)
        return Burst(
            steps=i + 1,
            pool=pool,
            seen=now.seen.add(chosen),
            rows=RowState(
                place=row.place._replace(lengths=row.place.lengths + on),
                last=jnp.where(done, row.last, chosen),
                count=row.count + on,
                left=row.left - on,
                done=done | stopped,
                grammar=state,
            ),
            ids=now.ids.at[:, i].set(jnp.where(done, -1, chosen)),
            logprobs=now.logprobs.at[:, i].set(found.logprobs),
            tops=jax.tree.map(lambda whole, each: whole.at[:, i].set(each), now.tops, tops),
        )

    ids, logprobs = jnp.full((slots, BURST), -1, jnp.int32), jnp.zeros((slots, BURST))
    tops = Tops.empty(slots, BURST)
    first = Burst(jnp.zeros((), jnp.int32), pool, seen, rows, ids, logprobs, tops)
    return jax.lax.while_loop(going, step, first)


@jax.jit
def score(
    model: Llama, states: Float[Array, "B S D"], targets: Int[Array, "B S"]
) -> tuple[Float[Array, "B S"], Bool[Array, "B S"]]:
    """Returns the negative log-likelihood of each target, within its modality, in nats.

    Also returns True for a target if no other id of its modality has a higher score.

    Args:
        model: The model.
        states: Of its last layer, before the final norm.
        targets: The id that follows each state.
    """
    found = model.score(model.norm(states), targets)
    return reshard(found.nll, P()), reshard(found.correct, P())


_TOGETHER = 32
"""Tokens of a row whose logits `rank` has in memory at a time; it divides all chunks."""


@jax.jit
def rank(model: Llama, states: Float[Array, "B S D"], targets: Int[Array, "B S"]) -> Tops:
    """Returns the likeliest ids of each target's modality, `[B, S, K]`; see `score`."""
    tokens = model.config.tokens
    rows, count, _ = states.shape
    x = reshard(model.norm(states), P(BATCH, None, None))
    x = x.reshape(rows, count // _TOGETHER, _TOGETHER, -1).swapaxes(0, 1)
    is_text = reshard(targets < tokens.text, P())
    is_text = is_text.reshape(rows, count // _TOGETHER, _TOGETHER).swapaxes(0, 1)

    def part(given: tuple[Array, Array]) -> Tops:
        logits = reshard(model.logits(given[0]), P())[..., : tokens.size]
        same = (jnp.arange(tokens.size) < tokens.text) == given[1][..., None]
        own = jnp.where(same, logits, -jnp.inf)
        return Scale.of(own).tops(own)

    found = jax.lax.map(part, (x, is_text))
    return jax.tree.map(lambda each: each.swapaxes(0, 1).reshape(rows, count, TOPS), found)


def _where(rows: Bool[Array | np.ndarray, " B"], these: Any, others: Any) -> Any:
    """Takes whole rows of a tree of arrays from one of two."""

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(rows.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, these, others)
