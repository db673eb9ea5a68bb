"""Memory beside weights and KV cache.

vLLM measures it when it starts. Here it is modelled on what start-up logs say; docs/memory.md shows how
far that carries. The constants were set once over all logs, never for one of them.
"""

from vllmjobs.vllm.memory.gpus import GIB, Gpu
from vllmjobs.vllm.memory.parts import Dense, Experts, Recurrent
from vllmjobs.vllm.memory.serving import Serving
from vllmjobs.vllm.memory.shape import Shape

ALWAYS = 0.35  # GiB: buffers for inputs and sampling, workspaces of attention kernels
LOGITS = 3.5  # copies of the logits in 32 bits that the sampler holds at its peak


def activation_bytes(shape: Shape, serving: Serving, seqs: int, batched: int) -> int:
    """Return the peak of the profiling run: a full batch through the widest layer, the sampler on all logits.

    The two follow one another, but half of the smaller one was found to add to the larger.
    """
    sampler = 0.0 if shape.pooling else LOGITS * 4 * min(seqs, batched) * shape.vocab
    forward = _forward(shape, serving, batched)
    # The largest image in the encoder's cache; its activations are not known.
    images = 0 if shape.vision is None else 2 * max(batched, 16384) * shape.hidden
    return int(ALWAYS * GIB + max(sampler, forward) + min(sampler, forward) / 2 + images)


def _forward(shape: Shape, serving: Serving, batched: int) -> int:
    widest = 0
    for layer in set(shape.layers):
        for feed in layer.feeds:
            if isinstance(feed, Experts):
                among = 1 if serving.expert_parallel else serving.tensor_parallel * serving.data_parallel
                width = -(-feed.width // among)
                widest = max(widest, feed.active * (max(2 * width, shape.hidden) + width))
            elif isinstance(feed, Dense):
                widest = max(widest, (3 if feed.gated else 2) * feed.width // serving.tensor_parallel)
    return 2 * batched * (widest + 3 * shape.hidden)


def cuda_graph_bytes(shape: Shape, gpu: Gpu, serving: Serving, seqs: int, batched: int) -> int:
    """Return the bytes that vLLM estimates for the captured graphs, and has counted since 0.21.

    A graph per size and layer takes about 0.25 MiB; 0.15 MiB with the second model runner, which serves
    dense models since 0.25.
    """
    if serving.enforce_eager or serving.version < (0, 21):
        return 0
    dense = not any(isinstance(feed, Experts) for layer in shape.layers for feed in layer.feeds)
    dense = dense and not any(isinstance(each, Recurrent) for layer in shape.layers for each in layer.mixers)
    each = 0.15 if dense and serving.version >= (0, 25) else 0.25
    sizes = capture_sizes(gpu, seqs, batched)
    graphs = len(sizes) + sum(size <= seqs for size in sizes)  # piecewise, and full for decoding
    return int(each * 2**20 * graphs * len(shape.layers) / serving.pipeline_parallel)


def capture_sizes(gpu: Gpu, seqs: int, batched: int) -> list[int]:
    """Return the batch sizes that are captured (`_set_cudagraph_sizes`, `vllm/config/vllm.py`)."""
    limit = min(2 * seqs, 1024 if gpu.capability[0] == 10 else 512, batched)
    return [size for size in (1, 2, 4, *range(8, 256, 8), *range(256, limit + 1, 16)) if size <= limit]


def non_torch_bytes(gpu: Gpu, serving: Serving) -> int:
    """Return CUDA's context; over several GPUs also NCCL's buffers, and all-reduce's workspaces on NVLink."""
    if serving.gpu_count == 1:
        return int(0.25 * GIB)
    return int((2.1 if gpu.capability[0] in {9, 10} else 0.4) * GIB)
