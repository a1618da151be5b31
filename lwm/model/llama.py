"""Dense decoder of the Llama kind over one token space for text and vision.

Letters of shapes: B batch rows, S sequence, D model width, F feed-forward width,
N heads, K key/value heads, H head width, R rotated pairs, L layers, V table rows.
"""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractMesh, Mesh, PartitionSpec as P, get_abstract_mesh, reshard
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lwm.model.config import Compute, Held, LlamaConfig, Remat
from lwm.model.embedding import embed, embed_stream
from lwm.model.layers import Block, Packing, RMSNorm
from lwm.model.linear import LoRAWeight, linear
from lwm.model.pool import PagePool, Place
from lwm.model.quantize import QuantizedWeight
from lwm.model.rope import rotation
from lwm.ops.cross_entropy import TokenLoss, cross_entropy
from lwm.ops.stream import Stream
from lwm.sharding import ROW, SHARD, require_divisible, tokens_spec, without_sp


class Llama(eqx.Module):
    """Language model: token ids in, logits over the whole token space out.

    `blocks` is either one Block whose arrays have a leading layer axis and is scanned (training:
    only one layer is compiled), or a tuple of Blocks in a loop (generation: on a CPU, a scan would
    copy every weight before use).
    """

    embedding: Float[Array, "V D"]
    """Of few bits, transposed to `D V`: a tied table is multiplied as a head is."""
    blocks: Block | tuple[Block, ...]
    norm: RMSNorm
    head: Float[Array, "D V"] | None
    config: LlamaConfig = eqx.field(static=True)
    compute: Compute = eqx.field(static=True)

    @classmethod
    def init(
        cls, config: LlamaConfig, compute: Compute = Compute(), *, key: PRNGKeyArray
    ) -> "Llama":
        """Samples stacked weights under the mesh in use; their values do not depend on the mesh."""
        embedding, blocks, head = jr.split(key, 3)
        V, D = config.tokens.rows, config.dim
        table = config.init_std * jr.normal(embedding, (V, D), out_sharding=P("tp", SHARD))
        columns = None
        if not config.tie_embeddings:
            columns = config.init_std * jr.normal(head, (D, V), out_sharding=P(SHARD, "tp"))
        layers = jr.split(blocks, config.num_layers)
        return cls(
            embedding=table,
            blocks=jax.vmap(lambda key: Block.init(config, key=key))(layers),
            norm=RMSNorm.init(D, config.norm_eps),
            head=columns,
            config=config,
            compute=compute,
        )

    @property
    def held(self) -> Held:
        """Type in which matrices are held."""
        block = self.blocks[0] if isinstance(self.blocks, tuple) else self.blocks
        weight = block.attention.wq
        if isinstance(weight, LoRAWeight):
            weight = weight.weight
        if isinstance(weight, QuantizedWeight):
            return weight.kind
        return "bfloat16" if weight.dtype == jnp.bfloat16 else "float32"

    def unstack(self) -> "Llama":
        """Returns the model with a tuple of blocks."""
        if isinstance(self.blocks, tuple):
            return self
        blocks = tuple(
            jax.tree.map(lambda leaf, i=i: leaf[i], self.blocks)
            for i in range(self.config.num_layers)
        )
        return dataclasses.replace(self, blocks=blocks)

    def for_generation(self) -> "Llama":
        """Returns the model with a tuple of blocks, and the same weights on all devices of `sp`."""

        def place(leaf: Array) -> Array:
            return reshard(leaf, without_sp(jax.typeof(leaf).sharding.spec))

        apart = self.unstack()
        return jax.tree.map(place, apart) if get_abstract_mesh().shape["sp"] > 1 else apart

    def stack(self) -> "Llama":
        """Returns the model with one block whose arrays have a leading layer axis."""
        if not isinstance(self.blocks, tuple):
            return self
        return dataclasses.replace(
            self, blocks=jax.tree.map(lambda *leaves: jnp.stack(leaves), *self.blocks)
        )

    def __call__(self, tokens: Int[Array, "B S"], packing: Packing) -> Float[Array, "B S V"]:
        """Returns the logits after every token of whole, possibly packed, rows."""
        return self.logits(self.hidden(tokens, packing))

    def hidden(self, tokens: Int[Array, "B S"], packing: Packing) -> Float[Array, "B S D"]:
        """Returns the normalised states after the last layer."""
        stream = self._stream(tokens)
        return stream.leave(self._states(tokens, packing, stream))

    def _stream(self, tokens: Int[Array, "B S"]) -> Stream:
        return Stream.of(tokens.shape[1], chunk=self.compute.mlp_chunk)

    def _states(
        self, tokens: Int[Array, "B S"], packing: Packing, stream: Stream
    ) -> Float[Array, "P B s D"]:
        turn = functools.partial(rotation, rope=self.config.rope, head_dim=self.config.head_dim)
        table = self.embedding
        if isinstance(table, QuantizedWeight):
            table = table.astype(self.compute.dtype).T
        x = embed_stream(table, tokens, stream, dtype=self.compute.dtype)

        def layer(x: Array, block: Block) -> tuple[Array, None]:
            return block(checkpoint_name(x, "layer_input"), turn, packing, stream), None

        layer = _rematerialise(layer, self.compute.remat)
        if isinstance(self.blocks, tuple):
            for block in self.blocks:
                x, _ = layer(x, block)
        else:
            x, _ = jax.lax.scan(layer, x, self.blocks)
        return self.norm(x)

    def extend(
        self, tokens: Int[Array, "B S"], place: Place, pool: PagePool
    ) -> tuple[Float[Array, "B S D"], PagePool]:
        """Reads S more tokens of each row into its pages; returns the states after the last layer.

        The states are not normalised yet: reading a prompt has no use for them.
        """
        blocks = self.unstack().blocks
        assert isinstance(blocks, tuple)
        cos_sin = _rotation(place.lengths, tokens.shape[1], self.config)
        x = embed(self.embedding, tokens, dtype=self.compute.dtype)
        layers = []
        for block, layer in zip(blocks, pool.layers, strict=True):
            x, layer = _extend_block(block, x, cos_sin, layer, place)
            layers.append(layer)
        return x, pool.extended(layers)

    @property
    def _head(self) -> tuple[Float[Array, "..."] | QuantizedWeight, bool]:
        """The head, `D V`, or else the token table, and whether that is `V D`."""
        if self.head is not None:
            return self.head, False
        return self.embedding, not isinstance(self.embedding, QuantizedWeight)

    @jax.named_scope("head")
    def logits(self, x: Float[Array, "B S D"]) -> Float[Array, "B S V"]:
        """Returns the logits of every id in float32; padding rows of the table get -inf."""
        # A tied table is used as it is stored: transposed, it would be copied.
        head, is_table = self._head
        scores = linear(
            x,
            head,
            transposed=is_table,
            dtype=jnp.float32,
            out_sharding=P(*jax.typeof(x).sharding.spec[:2], "tp"),
        )
        tokens = self.config.tokens
        if tokens.rows == tokens.size:
            return scores
        real = reshard(jnp.arange(tokens.rows) < tokens.size, P("tp"))
        return jnp.where(real, scores, -jnp.inf)

    def losses(
        self, tokens: Int[Array, "B S"], targets: Int[Array, "B S"], packing: Packing
    ) -> TokenLoss:
        """Returns the loss of each target; the logits of a whole row are never in memory."""
        stream = self._stream(tokens)
        return self._score(self._states(tokens, packing, stream), targets, stream)

    def score(self, x: Float[Array, "B S D"], targets: Int[Array, "B S"]) -> TokenLoss:
        """Returns the loss of each target after a normalised state of the last layer."""
        stream = Stream.of(x.shape[1])
        return self._score(stream.enter(x), targets, stream)

    @jax.named_scope("loss")
    def _score(
        self, x: Float[Array, "P B s D"], targets: Int[Array, "B S"], stream: Stream
    ) -> TokenLoss:
        head, is_table = self._head
        if isinstance(head, QuantizedWeight):
            head = head.astype(x.dtype)
        table = head if is_table else head.T
        compute, tokens = self.compute, self.config.tokens
        return cross_entropy(
            x, table, targets, stream=stream, tokens=tokens, chunk=compute.loss_chunk
        )


def check_mesh(config: LlamaConfig, mesh: Mesh | AbstractMesh) -> None:
    """Checks that the weights divide evenly over a mesh.

    Raises:
        UserError: They do not; names the size and its divisor.
    """
    for what, size, axes in (
        ("attention heads", config.num_heads, ("tp",)),
        ("key/value heads", config.num_kv_heads, ("tp",)),
        ("feed-forward columns", config.mlp_dim, ("tp",)),
        ("rows of the token table", config.tokens.rows, ("tp",)),
        ("model dimensions", config.dim, SHARD),
    ):
        require_divisible(mesh, what, size, axes)


def _rematerialise(layer, remat: Remat):
    if remat == "none":
        return layer
    found = ["attention_out", "attention_lse"]
    policies = jax.checkpoint_policies
    attention = policies.save_only_these_names(*found)
    policy = {
        "full": policies.nothing_saveable,
        "dots": policies.save_from_both_policies(
            policies.dots_with_no_batch_dims_saveable, attention
        ),
        "attention": attention,
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=["layer_input", *found],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }[remat]
    return jax.checkpoint(layer, policy=policy)


# `extend` runs these functions one by one, so that one layer is compiled and not L of them; inside
# an outer jit, as in the decoding loop, they become part of its program.


@functools.partial(jax.jit, static_argnames=("count", "config"))
def _rotation(
    lengths: Int[Array, " B"], count: int, config: LlamaConfig
) -> tuple[Float[Array, "B S R"], Float[Array, "B S R"]]:
    """Returns the cosine and sine of the positions of new tokens."""
    positions = reshard(lengths, ROW)[:, None] + jnp.arange(count)
    return rotation(reshard(positions, tokens_spec(count)), config.rope, config.head_dim)


@functools.partial(jax.jit, donate_argnames="layer")
def _extend_block(block, x, cos_sin, layer, place):
    return block.extend(x, cos_sin, layer, place)
