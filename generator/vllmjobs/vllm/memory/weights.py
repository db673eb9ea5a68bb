"""The weights of a model, and which part of them each GPU holds.

Norms and biases are left out: together they are under 0.2 % of any model.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import msgspec

from vllmjobs.vllm.memory.parts import Attention, Dense, Experts, Latent, Mixer, Recurrent
from vllmjobs.vllm.memory.quantization import Quantization
from vllmjobs.vllm.memory.shape import Shape

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "half": 2, "float": 4, "float32": 4}
VOCABULARY_PADDING = 64  # DEFAULT_VOCAB_PADDING_SIZE, layers/vocab_parallel_embedding.py


class Matrix(NamedTuple):
    """One linear layer or table, or `copies` of it.

    `parts` are the pieces that tensor parallelism deals out: heads, columns; 1 for what every GPU holds
    whole. What is `made` is computed when the model is loaded, and not part of the checkpoint.
    """

    name: str
    inputs: int
    outputs: int
    parts: int = 1
    copies: int = 1
    plain: bool = False  # never quantized
    made: bool = False

    @property
    def size(self) -> int:
        """Numbers in it."""
        return self.inputs * self.outputs * self.copies


class GpuSplit(msgspec.Struct, frozen=True):
    """The spread of a model over GPUs. Data parallel replicas share the experts between them."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    experts: bool = False  # --enable-expert-parallel

    def share(self, matrix: Matrix) -> float:
        """Return the part of a matrix that one GPU holds.

        Without expert parallelism the experts are cut over all GPUs that share a pipeline stage
        (`FusedMoEParallelConfig.make`); what has fewer parts than GPUs is held several times.
        """
        among, parts = self.tensor, matrix.parts
        if matrix.copies > 1:
            among *= self.data
            parts = matrix.copies if self.experts else matrix.parts
        return -(-parts // among) / parts


def stages(layers: int, pipeline: int) -> list[range]:
    """Return the layers of each pipeline stage (`get_pp_indices`, `vllm/distributed/utils.py`).

    `pipeline` is from 1 to `layers`: a longer one leaves stages without a layer.
    """
    counts = [layers // pipeline] * pipeline
    for i in range(2, layers % pipeline + 2):
        counts[-i] += 1
    starts = [sum(counts[:i]) for i in range(pipeline)]
    return [range(start, start + count) for start, count in zip(starts, counts, strict=True)]


@lru_cache(maxsize=256)
def weight_bytes(
    shape: Shape, split: GpuSplit, dtype: str | None = None, quantization: Quantization | None = None
) -> tuple[int, ...]:
    """Return the bytes of weights on one GPU of each pipeline stage."""
    width = DTYPE_BYTES.get(dtype or shape.dtype, 2)

    totals = []
    for each in stages(len(shape.layers), split.pipeline):
        matrices = [matrix for i in each for matrix in layer_matrices(shape, i)]
        if each.start == 0:
            matrices += before(shape)
        if each.stop == len(shape.layers):
            if shape.tied and split.pipeline > 1:
                matrices += [_table("lm_head", shape)]
            matrices += after(shape)
        totals.append(int(sum(_held(matrix, split, width, quantization) for matrix in matrices)))
    return tuple(totals)


def _held(matrix: Matrix, split: GpuSplit, width: int, how: Quantization | None) -> float:
    share = split.share(matrix)
    if how is None or matrix.plain or not how.covers(matrix.name):
        return matrix.size * share * width
    if how.method == "mxfp4" and matrix.copies > 1:
        return _padded(matrix, split) * how.bytes_per_weight
    return matrix.size * share * how.bytes_per_weight


def _padded(matrix: Matrix, split: GpuSplit) -> int:
    """Return the numbers of MXFP4 experts on one GPU: kernels want a width in 128s, a hidden size in 256s.

    `mxfp4_round_up_hidden_size_and_intermediate_size`, `fused_moe/oracle/mxfp4.py`: Marlin and TRT-LLM.
    """
    among = split.tensor * split.data
    copies, pieces = (-(-matrix.copies // among), 1) if split.experts else (matrix.copies, among)
    cut = -(-matrix.parts // pieces)
    whole = matrix.inputs * matrix.outputs // matrix.parts
    return copies * (-(-cut // 128) * 128) * (-(-whole // 256) * 256)


def before(shape: Shape) -> Iterator[Matrix]:
    """Yield the bytes before the first layer: embeddings and the vision tower."""
    yield _table("embed_tokens", shape)
    if shape.learned_positions:
        yield Matrix("positions", shape.learned_positions, shape.hidden, plain=True)
    if (see := shape.vision) is not None:
        layer = 4 * see.hidden**2 + see.width * see.hidden * (3 if see.gated else 2)
        yield Matrix("visual.blocks", see.layers, layer, parts=see.width, plain=True)
        merger = 4 * see.hidden * (4 * see.hidden + see.out)
        yield Matrix("visual.mergers", see.mergers, merger, parts=see.width, plain=True)


def after(shape: Shape) -> Iterator[Matrix]:
    """Yield the bytes after the last layer: the output table, unless it is the input table."""
    if not shape.tied and not shape.pooling:
        yield _table("lm_head", shape)


def _table(name: str, shape: Shape) -> Matrix:
    padded = padded_vocabulary(shape.vocab)
    return Matrix(name, shape.hidden, padded, parts=padded, plain=True)


def padded_vocabulary(vocab: int) -> int:
    """Return the vocabulary as vLLM rounds it up; tensor parallelism has to divide this."""
    return -(-vocab // VOCABULARY_PADDING) * VOCABULARY_PADDING


def layer_matrices(shape: Shape, index: int) -> Iterator[Matrix]:
    """Yield the matrices of one layer, named as vLLM and checkpoints do from `layers.` on."""
    at, layer = f"layers.{index}.", shape.layers[index]
    for mixer in layer.mixers:
        yield from _mixer(at, shape.hidden, mixer)
    for feed in layer.feeds:
        if isinstance(feed, Dense):
            yield from _feed(at + "mlp", shape.hidden, feed.width, feed.gated)
        else:
            alone = len(layer.feeds) == 1  # beside a dense layer (Gemma 4) they stand outside mlp
            yield from _experts(at + "mlp" if alone else at[:-1], shape.hidden, feed)


def _mixer(at: str, hidden: int, mixer: Mixer) -> Iterator[Matrix]:
    if isinstance(mixer, Attention):
        at += "self_attn."
        queries = mixer.heads * mixer.head_dim * (2 if mixer.gated else 1)
        yield Matrix(at + "q_proj", hidden, queries, mixer.heads)
        yield Matrix(at + "k_proj", hidden, mixer.kv_heads * mixer.head_dim, mixer.kv_heads)
        values = mixer.kv_heads * mixer.value_dim
        yield Matrix(at + "v_proj", hidden, values, mixer.kv_heads, made=mixer.keys_are_values)
        yield Matrix(at + "o_proj", mixer.heads * mixer.value_dim, hidden, mixer.heads)
    elif isinstance(mixer, Latent):
        yield from _latent(at + "self_attn.", hidden, mixer)
    else:
        yield from _recurrent(f"{at}{mixer.module}.", hidden, mixer)


def _latent(at: str, hidden: int, mixer: Latent) -> Iterator[Matrix]:
    heads, queries = mixer.heads, mixer.heads * (mixer.nope + mixer.rope)
    if mixer.q_rank:
        yield Matrix(at + "q_a_proj", hidden, mixer.q_rank)
        yield Matrix(at + "q_b_proj", mixer.q_rank, queries, heads)
    else:
        yield Matrix(at + "q_proj", hidden, queries, heads)
    yield Matrix(at + "kv_a_proj_with_mqa", hidden, mixer.kv_rank + mixer.rope)
    from_latent = heads * (mixer.nope + mixer.value_dim)
    yield Matrix(at + "kv_b_proj", mixer.kv_rank, from_latent, heads)
    # Decoding works in the latent space, with W_UK and W_UV of its own (layers/attention/mla_attention.py).
    yield Matrix(at + "absorbed", mixer.kv_rank, from_latent, heads, plain=True, made=True)
    yield Matrix(at + "o_proj", heads * mixer.value_dim, hidden, heads)
    if mixer.index_heads:
        yield Matrix(at + "indexer.wq_b", mixer.q_rank or hidden, mixer.index_heads * mixer.index_dim)
        yield Matrix(at + "indexer.wk", hidden, mixer.index_dim + mixer.index_heads, plain=True)


def _recurrent(at: str, hidden: int, mixer: Recurrent) -> Iterator[Matrix]:
    yield Matrix(at + "in_proj", hidden, mixer.projected, mixer.heads)
    channels = mixer.inner + mixer.groups * mixer.group_width
    yield Matrix(at + "conv1d", mixer.kernel, channels, mixer.heads, plain=True)
    yield Matrix(at + "out_proj", mixer.inner, hidden, mixer.heads)
    if mixer.extra:
        yield Matrix(at + "x_proj", 1, mixer.extra, mixer.heads, plain=True)


def _feed(at: str, hidden: int, width: int, gated: bool, copies: int = 1) -> Iterator[Matrix]:
    if gated:
        yield Matrix(at + ".gate_proj", hidden, width, width, copies)
    yield Matrix(at + ".up_proj", hidden, width, width, copies)
    yield Matrix(at + ".down_proj", width, hidden, width, copies)


def _experts(at: str, hidden: int, feed: Experts) -> Iterator[Matrix]:
    yield Matrix(at + ".gate", hidden, feed.count, plain=True)
    yield from _feed(at + ".experts", hidden, feed.width, feed.gated, feed.count)
    if feed.shared:
        yield from _feed(at + ".shared_experts", hidden, feed.shared, feed.gated)
