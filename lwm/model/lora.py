"""Low-rank adapters of a model's weights (LoRA, Hu et al. 2021, arXiv 2106.09685).

A weight W that is not trained becomes W + scale · a b, and only `a` and `b` are trained. `a` starts
at random and `b` at zero, so that training starts from the model as it is (section 4.1).

Letters of shapes as in `lwm.model.llama`; r rank, `*C` the dimensions that a product with the
weight sums over, `*O` those of its result.
"""

import math
import operator
from collections.abc import Mapping
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PRNGKeyArray

from lwm.model.config import LORA_TARGETS, LlamaConfig, LoRA
from lwm.model.layers import Block
from lwm.model.linear import LoRAWeight
from lwm.model.llama import Llama
from lwm.sharding import SHARD

_LETTERS = {
    "attention.wq": ("D", "NH"),
    "attention.wk": ("D", "KH"),
    "attention.wv": ("D", "KH"),
    "attention.wo": ("NH", "D"),
    "mlp.w_gate": ("D", "F"),
    "mlp.w_up": ("D", "F"),
    "mlp.w_down": ("F", "D"),
}
"""Dimensions of weights: those that a product sums over, and those of its result."""
_SPLIT = {"D": SHARD, "N": "tp", "K": "tp", "H": None, "F": "tp"}


class Factors(eqx.Module):
    """The two factors of an adapter, of all layers."""

    a: Float[Array, "L ..."]
    """Of shape `L *C r`."""
    b: Float[Array, "L ..."]
    """Of shape `L r *O`."""


class FactorShapes(NamedTuple):
    """Shapes of the factors of one layer, and how they are split."""

    a: tuple[int, ...]
    b: tuple[int, ...]
    a_spec: P
    b_spec: P


class Adapter(eqx.Module):
    """Adapters of the weights of all layers."""

    layers: dict[str, Factors]
    """By path of the weight in a block."""
    scale: float = eqx.field(static=True)

    @classmethod
    def init(cls, config: LlamaConfig, lora: LoRA, *, key: PRNGKeyArray) -> "Adapter":
        """Samples `a` as PEFT does, from U(±1/√C), under the mesh in use; `b` is zero.

        The values do not depend on the mesh.
        """
        L, layers = config.num_layers, {}
        for target in lora.targets:
            path = LORA_TARGETS[target]
            at = factor_shapes(config, path, lora.rank)
            bound = 1 / math.sqrt(math.prod(at.a[:-1]))
            # Of each weight by its name: the samples do not depend on the other targets.
            own = jr.fold_in(key, list(LORA_TARGETS).index(target))
            a = jr.uniform(own, (L, *at.a), out_sharding=P(None, *at.a_spec))
            b = jnp.zeros((L, *at.b), out_sharding=P(None, *at.b_spec))
            layers[path] = Factors(bound * (2 * a - 1), b)
        return cls(layers, scale=lora.alpha / lora.rank)

    def on(self, model: Llama) -> Llama:
        """Returns a model with these adapters on its weights, which stay as they are held."""
        if isinstance(model.blocks, tuple):
            blocks = tuple(
                self._on_block(block, jax.tree.map(lambda leaf, i=i: leaf[i], self.layers))
                for i, block in enumerate(model.blocks)
            )
        else:
            blocks = self._on_block(model.blocks, self.layers)
        return eqx.tree_at(lambda model: model.blocks, model, blocks)

    def _on_block(self, block: Block, layers: Mapping[str, Factors]) -> Block:
        find = [operator.attrgetter(path) for path in layers]
        weights = [
            LoRAWeight(weight(block), factors.a, factors.b, self.scale)
            for weight, factors in zip(find, layers.values(), strict=True)
        ]
        return eqx.tree_at(lambda block: [weight(block) for weight in find], block, weights)


def num_parameters(config: LlamaConfig, lora: LoRA) -> int:
    """Counts the weights of the adapters of a model; 0 if there are none."""
    found = 0
    for target in lora.targets if lora.rank else ():
        at = factor_shapes(config, LORA_TARGETS[target], lora.rank)
        found += math.prod(at.a) + math.prod(at.b)
    return config.num_layers * found


def factor_shapes(config: LlamaConfig, path: str, rank: int) -> FactorShapes:
    """Returns the shapes of the factors of a weight, and their specs on a mesh for training."""
    sizes = {
        "D": config.dim,
        "N": config.num_heads,
        "K": config.num_kv_heads,
        "H": config.head_dim,
        "F": config.mlp_dim,
    }
    summed, result = _LETTERS[path]
    return FactorShapes(
        a=(*(sizes[letter] for letter in summed), rank),
        b=(rank, *(sizes[letter] for letter in result)),
        a_spec=P(*(_SPLIT[letter] for letter in summed), None),
        b_spec=P(None, *(_SPLIT[letter] for letter in result)),
    )
