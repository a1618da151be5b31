"""The compiled decoding loop: logits, guidance, grammar, choice of an id, and the next step."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P, reshard
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from lwm.generate.grammar import Grammar
from lwm.generate.sampling import RowSampling, choose
from lwm.model.llama import Llama
from lwm.model.pool import PagePool, Place
from lwm.sharding import ROW, ROWS
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


def choose_ids(
    logits: Float[Array, "B R"],
    inputs: RowInputs,
    grammar: Grammar | None,
    *,
    tokens: TokenSpace,
    seen: Bool[Array, "B V"],
    keys: Key[Array, " B"],
    done: Bool[Array | np.ndarray, " B"],
    state: Any = None,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Chooses one id per row; also returns its log-probability in the row's own distribution.

    That distribution is over the legal ids of the row's modality, before guidance and rules.
    Without a grammar all rows write text, and the logits of vision ids are not read.
    """
    split, end, guidance = tokens.text, tokens.size, inputs.guidance
    text = logits[:, :split]
    if grammar is None:
        return _choose(inputs.text, text, text, seen, keys, guidance)
    vision = logits[:, split:end]
    in_vision, legal = grammar.in_vision(state), grammar.legal(state)
    later = in_vision & grammar.in_video(state)

    def write():
        # A row of the other modality keeps its logits: no row is all -inf.
        own = jnp.where(legal[:, :split] | in_vision[:, None], text, -jnp.inf)
        return _choose(inputs.text, own, own, seen, keys, guidance)

    def sample_code(sampling: RowSampling, scale: Array | np.ndarray | None):
        allowed = legal[:, split:] | ~in_vision[:, None]
        own = jnp.where(allowed, vision, -jnp.inf)
        guided = own
        if guidance is not None and scale is not None:
            guided = jnp.where(allowed, guide(vision, guidance, scale), -jnp.inf)
        # Frames repeat codes (a sky does): the repetition penalty is for text only.
        unseen = jnp.zeros(vision.shape, bool)
        ids, logprobs = _choose(sampling, own, guided, unseen, keys, guidance)
        return split + ids, logprobs

    def skip():
        return jnp.zeros(done.shape, jnp.int32), jnp.zeros(done.shape)

    scales = (None, None) if guidance is None else (guidance.image, guidance.video)
    ids, logprobs = skip()
    for rows, choice in (
        (~in_vision, write),
        (in_vision & ~later, functools.partial(sample_code, inputs.image, scales[0])),
        (later, functools.partial(sample_code, inputs.video, scales[1])),
    ):
        found = jax.lax.cond(jnp.any(rows & ~done), choice, skip)
        ids, logprobs = (
            jnp.where(rows, new, old) for new, old in zip(found, (ids, logprobs), strict=True)
        )
    return ids, logprobs


def _choose(
    sampling: RowSampling,
    own: Float[Array, "B V"],
    guided: Float[Array, "B V"],
    seen: Bool[Array, "B V"],
    keys: Key[Array, " B"],
    guidance: Guidance | None,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    ids = choose(guided, sampling, seen=seen, keys=keys)
    if guidance is not None:
        ids = ids[guidance.leader]
    return ids, jnp.take_along_axis(jax.nn.log_softmax(own), ids[:, None], axis=1)[:, 0]


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
    seen: Bool[Array, "B V"]
    """The text ids that each row has read or written."""
    rows: RowState
    ids: Int[Array, "B C"]
    """Ids written, -1 after the end of a row."""
    logprobs: Float[Array, "B C"]
    """Natural logarithms, in the row's own distribution over the ids that may come next: before
    guidance and all sampling rules."""


@functools.partial(jax.jit, static_argnames="grammar", donate_argnames=("pool", "seen"))
def burst(
    model: Llama,
    pool: PagePool,
    seen: Bool[Array, "B V"],
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
        chosen, logprobs = choose_ids(
            logits,
            inputs,
            grammar,
            tokens=model.config.tokens,
            seen=now.seen,
            keys=jax.vmap(jax.random.fold_in)(row_keys, row.count),
            done=done,
            state=row.grammar,
        )
        state = row.grammar
        stopped = jnp.any(chosen[:, None] == inputs.stops, axis=1) | (row.left <= 1)
        if grammar is not None:
            state = _where(done, state, grammar.advance(state, chosen))
            stopped |= grammar.is_done(state)
        on = jnp.where(done, 0, 1)
        return Burst(
            steps=i + 1,
            pool=pool,
            seen=now.seen.at[jnp.arange(slots), chosen].set(True, mode="drop"),
            rows=RowState(
                place=row.place._replace(lengths=row.place.lengths + on),
                last=jnp.where(done, row.last, chosen),
                count=row.count + on,
                left=row.left - on,
                done=done | stopped,
                grammar=state,
            ),
            ids=now.ids.at[:, i].set(jnp.where(done, -1, chosen)),
            logprobs=now.logprobs.at[:, i].set(logprobs),
        )

    ids, logprobs = jnp.full((slots, BURST), -1, jnp.int32), jnp.zeros((slots, BURST))
    first = Burst(jnp.zeros((), jnp.int32), pool, seen, rows, ids, logprobs)
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


def _where(rows: Bool[Array | np.ndarray, " B"], these: Any, others: Any) -> Any:
    """Takes whole rows of a tree of arrays from one of two."""

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(rows.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, these, others)
