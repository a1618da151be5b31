"""The compiled loop that writes ids: logits, guidance, the grammar, a choice, and one step more."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P, reshard
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from lwm.generate.grammar import Grammar
from lwm.generate.sampling import Sampler
from lwm.model.cache import EMPTY, KVCache
from lwm.model.llama import Llama
from lwm.sharding import BATCH, TOKENS
from lwm.tokens import TokenSpace

BURST = 8
"""Tokens decoded by one call of the compiled loop, and so between two looks from outside."""


class Guidance(NamedTuple):
    """Which row guides which, as data (classifier-free guidance, Ho and Salimans 2022)."""

    leader: Int[Array | np.ndarray, " B"]
    """The row whose ids each row writes: its own, or those of the row that it guides."""
    away_from: Int[Array | np.ndarray, " B"]
    """The row without the condition, or the row itself."""
    image: Float[Array | np.ndarray, " B"]
    """The scale for the first frame of an image or video."""
    video: Float[Array | np.ndarray, " B"]
    """And for those after it."""

    @classmethod
    def of_pairs(
        cls, image: Sequence[float], rows: int, video: Sequence[float] | None = None
    ) -> "Guidance":
        """Lets row n + i guide row i, for n scales; rows after the pairs are left alone."""
        pairs, alone = len(image), np.arange(rows, dtype=np.int32)
        leader, away_from = alone.copy(), alone.copy()
        leader[pairs : 2 * pairs] = alone[:pairs]
        away_from[:pairs] = alone[pairs : 2 * pairs]
        scales = np.ones((2, rows), np.float32)
        scales[:, :pairs] = image, image if video is None else video
        return cls(leader, away_from, *scales)


def guide(
    logits: Float[Array, "B V"], guidance: Guidance, scale: Float[Array | np.ndarray, " B"]
) -> Float[Array, "B V"]:
    """Returns uncond + scale · (cond - uncond), written so that scale 1 changes no bit."""
    return logits + (scale[:, None] - 1) * (logits - logits[guidance.away_from])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chooser:
    """Chooses one id of each row. Static: what differs between rows is in the arguments."""

    tokens: TokenSpace
    sampler: Sampler
    image_sampler: Sampler
    """For the first frame of an image or video."""
    video_sampler: Sampler
    """For those after it."""
    grammar: Grammar | None
    """None: text only, and the logits of vision are never looked at."""

    def __call__(
        self,
        logits: Float[Array, "B R"],
        *,
        seen: Bool[Array, "B V"],
        keys: Key[Array, " B"],
        done: Bool[Array, " B"],
        state: Any = None,
        guidance: Guidance | None = None,
    ) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
        """Returns the ids, and the logarithm of each one's chance in its row's own distribution.

        That distribution is over the legal ids of the row's modality, before guidance and rules.
        """
        split, end = self.tokens.text, self.tokens.size
        text = logits[:, :split]
        if self.grammar is None:
            return _draw(self.sampler, text, text, seen, keys, guidance)
        grammar, vision = self.grammar, logits[:, split:end]
        draws, legal = grammar.in_vision(state), grammar.legal(state)
        later = draws & grammar.in_video(state)

        def write():
            # A row of the other modality keeps its logits: nothing is drawn from -inf alone.
            own = jnp.where(legal[:, :split] | draws[:, None], text, -jnp.inf)
            return _draw(self.sampler, own, own, seen, keys, guidance)

        def draw(sampler: Sampler, scale: Array | np.ndarray | None):
            allowed = legal[:, split:] | ~draws[:, None]
            own = jnp.where(allowed, vision, -jnp.inf)
            guided = own
            if guidance is not None and scale is not None:
                guided = jnp.where(allowed, guide(vision, guidance, scale), -jnp.inf)
            # A sky repeats its codes: a penalty on what was seen is for text only.
            unseen = jnp.zeros(vision.shape, bool)
            ids, chances = _draw(sampler, own, guided, unseen, keys, guidance)
            return split + ids, chances

        def skip():
            return jnp.zeros(done.shape, jnp.int32), jnp.zeros(done.shape)

        scales = (None, None) if guidance is None else (guidance.image, guidance.video)
        ids, chances = skip()
        for rows, choose in (
            (~draws, write),
            (draws & ~later, functools.partial(draw, self.image_sampler, scales[0])),
            (later, functools.partial(draw, self.video_sampler, scales[1])),
        ):
            found = jax.lax.cond(jnp.any(rows & ~done), choose, skip)
            ids, chances = (
                jnp.where(rows, new, old) for new, old in zip(found, (ids, chances), strict=True)
            )
        return ids, chances


def _draw(
    sampler: Sampler,
    own: Float[Array, "B V"],
    guided: Float[Array, "B V"],
    seen: Bool[Array, "B V"],
    keys: Key[Array, " B"],
    guidance: Guidance | None,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    ids = sampler(guided, seen=seen, keys=keys)
    if guidance is not None:
        ids = ids[guidance.leader]
    return ids, jnp.take_along_axis(jax.nn.log_softmax(own), ids[:, None], axis=1)[:, 0]


class Decoded(NamedTuple):
    """What the loop carries from step to step, and leaves behind."""

    count: Int[Array, ""]
    """Steps taken."""
    cache: KVCache
    last: Float[Array, "B D"]
    seen: Bool[Array, "B V"]
    """The text ids that each row has read or written."""
    done: Bool[Array, " B"]
    state: Any
    """Where each row stands in the grammar."""
    ids: Int[Array, "B C"]
    logprobs: Float[Array, "B C"]


@functools.partial(jax.jit, static_argnames="chooser", donate_argnames="cache")
def decode(
    model: Llama,
    cache: KVCache,
    last: Float[Array, "B D"],
    seen: Bool[Array, "B V"],
    done: Bool[Array, " B"],
    seeds: UInt32[Array, " B"],
    start: Int[Array, ""],
    stops: Int[Array, " E"],
    steps: Int[Array, ""],
    state: Any,
    guidance: Guidance | None,
    *,
    chooser: Chooser,
) -> Decoded:
    """Decodes up to `steps` ids, fewer if all rows stop; the key of a step is its number's."""
    rows = last.shape[0]
    row_keys = jax.vmap(jax.random.key)(seeds)
    grammar = chooser.grammar

    def going(now: Decoded):
        return (now.count < steps) & ~jnp.all(now.done)

    def step(now: Decoded) -> Decoded:
        i, done, state = now.count, now.done, now.state
        # All devices choose the same ids from all logits: no collective inside a sort.
        logits = reshard(model.logits(now.last[:, None])[:, 0], P())
        keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, start + i)
        chosen, chances = chooser(
            logits, seen=now.seen, keys=keys, done=done, state=state, guidance=guidance
        )
        segments = jnp.where(done, EMPTY, 0)
        last, cache = model.extend(
            reshard(chosen[:, None], TOKENS), reshard(segments[:, None], TOKENS), now.cache
        )
        # A row that is done may be continued by a later call, from where it ended.
        last = jnp.where(reshard(done, P(BATCH))[:, None], now.last, last)
        stopped = jnp.any(chosen[:, None] == stops[None, :], axis=1)
        if grammar is not None:
            state = _where(done, state, grammar.advance(state, chosen))
            stopped |= grammar.is_done(state)
        return Decoded(
            count=i + 1,
            cache=cache,
            last=last,
            seen=now.seen.at[jnp.arange(rows), chosen].set(True, mode="drop"),
            done=done | stopped,
            state=state,
            ids=now.ids.at[:, i].set(jnp.where(done, -1, chosen)),
            logprobs=now.logprobs.at[:, i].set(chances),
        )

    if grammar is not None:
        done |= grammar.is_done(state)
    ids, chances = jnp.full((rows, BURST), -1, jnp.int32), jnp.zeros((rows, BURST))
    zero = jnp.zeros((), jnp.int32)
    first = Decoded(zero, cache, last, seen, done, state, ids, chances)
    return jax.lax.while_loop(going, step, first)


def _where(rows: Bool[Array, " B"], these: Any, others: Any) -> Any:
    """Takes whole rows of a tree of arrays from one of two."""

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(rows.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, these, others)
