"""Choice of the next id from the logits: frozen rules as API, their values as data.

Rules apply in the order of Hugging Face transformers: penalty, temperature, top-k, top-p, min-p;
biases come before the penalty, and OpenAI's penalties after it. Each sees the logits that the one
before leaves. Values are arrays with an entry per row, so one compiled program serves all values,
and the rows of a batch may differ.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from lwm.sampling_params import SamplingParams


class RowSampling(NamedTuple):
    """Values of the rules, per row."""

    penalty: Float[Array | np.ndarray, " B"]
    """1: off."""
    temperature: Float[Array | np.ndarray, " B"]
    """0: greedy; 1: off."""
    top_k: Int[Array | np.ndarray, " B"]
    """0: off."""
    top_p: Float[Array | np.ndarray, " B"]
    """1: off."""
    min_p: Float[Array | np.ndarray, " B"]
    """0: off."""

    @classmethod
    def of(cls, samplers: "Sequence[Sampler]") -> "RowSampling":
        """Returns the values of one sampler per row."""
        penalty, temperature, top_k, top_p, min_p = np.array([s.values() for s in samplers]).T
        return cls(
            penalty.astype(np.float32),
            temperature.astype(np.float32),
            np.minimum(top_k, np.iinfo(np.int32).max).astype(np.int32),
            top_p.astype(np.float32),
            min_p.astype(np.float32),
        )


class Edits(NamedTuple):
    """Changes of single ids' logits, per row, as data; OpenAI's bias and penalties among them."""

    bias_ids: Int[Array | np.ndarray, "B K"]
    """Ids whose logits are changed, padded with -1."""
    bias: Float[Array | np.ndarray, "B K"]
    """Added to the logits of these."""
    presence: Float[Array | np.ndarray, " B"]
    """Subtracted from the logit of each id that the row has written; 0: off."""
    frequency: Float[Array | np.ndarray, " B"]
    """Likewise, as many times as the row has written it; 0: off."""
    banned: Int[Array | np.ndarray, "B E"]
    """Ids that may not be written, padded with -1."""
    counts: Int[Array | np.ndarray, "B V"]
    """How many times each row has written each id."""

    @property
    def is_on(self) -> Bool[Array, " B"]:
        """Rows that are changed."""
        is_set = jnp.any(self.bias_ids >= 0, axis=1) | jnp.any(self.banned >= 0, axis=1)
        return is_set | (self.presence != 0) | (self.frequency != 0)

    def biased(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        """Returns logits with the biases, and -inf for banned ids."""
        rows, beyond = jnp.arange(len(logits))[:, None], logits.shape[1]
        ids, banned = (jnp.where(at < 0, beyond, at) for at in (self.bias_ids, self.banned))
        logits = logits.at[rows, ids].add(self.bias, mode="drop")
        return logits.at[rows, banned].set(-jnp.inf, mode="drop")

    def penalised(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        """Returns logits less the penalties for what has been written."""
        more = self.frequency[:, None] * self.counts
        return logits - more - jnp.where(self.counts > 0, self.presence[:, None], 0)


class _Rule:
    """One rule with one value; called with logits, it changes all rows alike."""

    @property
    def value(self) -> float:
        """The rule's only field."""
        (value,) = vars(self).values()
        return float(value)

    def __call__(
        self, logits: Float[Array, "B V"], *, seen: Bool[Array, "B V"]
    ) -> Float[Array, "B V"]:
        """Returns the logits as changed; -inf rules an id out."""
        assert isinstance(self, Rule)
        values = RowSampling.of([Sampler(rules=(self,))] * len(logits))
        return jax.jit(apply_rules)(logits, values, seen=seen)


@dataclasses.dataclass(frozen=True)
class RepetitionPenalty(_Rule):
    """Makes ids that the row has read or written less likely (Keskar et al. 2019, section 4.1)."""

    penalty: float


@dataclasses.dataclass(frozen=True)
class Temperature(_Rule):
    """Flattens (above 1) or sharpens (below 1) the distribution."""

    temperature: float


@dataclasses.dataclass(frozen=True)
class TopK(_Rule):
    """Keeps the k most likely ids, and those as likely as the last of them."""

    k: int


@dataclasses.dataclass(frozen=True)
class TopP(_Rule):
    """Keeps the fewest ids whose probabilities sum to p (Holtzman et al. 2020, section 3.1)."""

    p: float


@dataclasses.dataclass(frozen=True)
class MinP(_Rule):
    """Keeps ids at least p times as likely as the likeliest (Nguyen et al. 2024)."""

    p: float


Rule = RepetitionPenalty | Temperature | TopK | TopP | MinP
_OFF = {RepetitionPenalty: 1.0, Temperature: 1.0, TopK: 0.0, TopP: 1.0, MinP: 0.0}
"""The value that changes nothing, per kind of rule, in the order of application."""


def apply_rules(
    logits: Float[Array, "B V"], values: RowSampling, *, seen: Bool[Array, "B V"]
) -> Float[Array, "B V"]:
    """Returns the logits under the rules; a rule that no row uses costs nothing.

    Args:
        logits: Of the ids that may be chosen; -inf for others.
        values: Of the rules.
        seen: Ids that a row has read or written.
    """
    return _narrow(_penalise(logits, values.penalty, seen), values)


def _narrow(logits: Float[Array, "B V"], values: RowSampling) -> Float[Array, "B V"]:
    """Applies the rules after the penalty."""
    logits = logits / jnp.where(values.temperature > 0, values.temperature, 1)[:, None]
    rules: tuple[tuple[Any, Callable], ...] = (
        (values.top_k > 0, lambda x: x < _kth_largest(x, values.top_k)[:, None]),
        (values.top_p < 1, lambda x: _beyond_top_p(x, values.top_p)),
        (values.min_p > 0, lambda x: x < _max(x) + jnp.log(values.min_p)[:, None]),
    )
    for is_on, ruled_out in rules:

        def change(x, is_on=is_on, ruled_out=ruled_out):
            return jnp.where(is_on[:, None] & ruled_out(x), -jnp.inf, x)

        logits = jax.lax.cond(jnp.any(is_on), change, lambda x: x, logits)
    return logits


def choose(
    logits: Float[Array, "B V"],
    values: RowSampling,
    *,
    seen: Bool[Array, "B V"],
    keys: Key[Array, " B"],
    edits: Edits | None = None,
) -> Int[Array, " B"]:
    """Chooses one id per row: a sample by the row's key, or the likeliest (of equals, the first).

    If all rows are greedy, nothing is sorted or sampled; if none has edits, nothing is edited.
    """
    is_sampled = values.temperature > 0
    is_any_sampled = is_any_ruled = jnp.any(is_sampled)

    def plain():
        return _penalise(logits, values.penalty, seen)

    def edited():
        assert edits is not None
        return edits.penalised(_penalise(edits.biased(logits), values.penalty, seen))

    def ruled():
        found = plain() if edits is None else jax.lax.cond(is_any_edited, edited, plain)
        greedy = _likeliest(found)

        def sample():
            ids = jax.vmap(jax.random.categorical)(keys, _narrow(found, values))
            return jnp.where(is_sampled, ids.astype(jnp.int32), greedy)

        return jax.lax.cond(is_any_sampled, sample, lambda: greedy)

    if edits is not None:
        is_any_edited = jnp.any(edits.is_on)
        is_any_ruled |= is_any_edited
    return jax.lax.cond(is_any_ruled, ruled, lambda: _likeliest(plain()))


def _likeliest(logits: Float[Array, "B V"]) -> Int[Array, " B"]:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def _penalise(
    logits: Float[Array, "B V"], penalty: Float[Array | np.ndarray, " B"], seen: Bool[Array, "B V"]
) -> Float[Array, "B V"]:
    """Divides positive logits of seen ids by the penalty and multiplies negative ones."""
    by = penalty[:, None]
    return jnp.where(seen, jnp.where(logits > 0, logits / by, logits * by), logits)


def _max(logits: Float[Array, "B V"]) -> Float[Array, "B 1"]:
    return jnp.max(logits, axis=-1, keepdims=True)


def _kth_largest(
    logits: Float[Array, "B V"], k: Int[Array | np.ndarray, " B"]
) -> Float[Array, " B"]:
    """Finds the k-th largest logit, or the least of fewer, by bisection over the bits.

    Needs no sort, and k as data: 32 counts over V in place of V log V comparisons.
    """
    top = jnp.uint32(1 << 31)
    bits = jax.lax.bitcast_convert_type(logits, jnp.uint32)
    rank = jnp.where(bits >= top, ~bits, bits | top)  # integers in the order of the floats
    k = jnp.minimum(k, logits.shape[-1])

    def narrow(i, found):
        trial = found | (top >> i.astype(jnp.uint32))
        count = jnp.sum(rank >= trial[:, None], axis=1, dtype=jnp.int32)
        return jnp.where(count >= k, trial, found)

    found = jax.lax.fori_loop(0, 32, narrow, jnp.zeros(len(logits), jnp.uint32))
    return jax.lax.bitcast_convert_type(jnp.where(found >= top, found ^ top, ~found), logits.dtype)


def _beyond_top_p(
    logits: Float[Array, "B V"], p: Float[Array | np.ndarray, " B"]
) -> Bool[Array, "B V"]:
    """Says of each id whether those more likely already have probability p."""
    falling = -jnp.sort(-logits, axis=-1)
    chances = jax.nn.softmax(falling, axis=-1)
    kept = jnp.cumsum(chances, axis=-1) - chances < p[:, None]
    return logits < jnp.min(jnp.where(kept, falling, jnp.inf), axis=-1, keepdims=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """Rules in their order, then a sample, or the likeliest id (the first of equals)."""

    rules: tuple[Rule, ...] = ()
    is_greedy: bool = False

    def __post_init__(self):
        """Refuses rules in another order than they apply in, and two of a kind.

        Raises:
            ValueError: The rules.
        """
        places = [list(_OFF).index(type(rule)) for rule in self.rules]
        if places != sorted(set(places)):
            order = ", ".join(kind.__name__ for kind in _OFF)
            raise ValueError(f"rules apply in the order {order}, each once, not as {self.rules}")

    def values(self) -> list[float]:
        """Returns the value of each kind of rule, in their order."""
        values = _OFF | {type(rule): rule.value for rule in self.rules}
        if self.is_greedy:
            values[Temperature] = 0.0
        return list(values.values())

    def __call__(
        self,
        logits: Float[Array, "B V"],
        *,
        seen: Bool[Array, "B V"],
        keys: Key[Array, " B"],
    ) -> Int[Array, " B"]:
        """Chooses one id for each row, with the row's own key."""
        values = RowSampling.of([self] * len(logits))
        return jax.jit(choose)(logits, values, seen=seen, keys=keys)


GREEDY = Sampler(is_greedy=True)


def sampler(params: SamplingParams) -> Sampler:
    """Returns the rules of the parameters; those that would change nothing are left out."""
    rules: list[Rule] = [RepetitionPenalty(params.repetition_penalty)]
    if params.temperature > 0:
        rules += [Temperature(params.temperature), TopK(params.top_k)]
        rules += [TopP(params.top_p), MinP(params.min_p)]
    used = tuple(rule for rule in rules if rule.value != _OFF[type(rule)])
    return Sampler(rules=used, is_greedy=params.temperature == 0)
