"""A tiny Llama with random weights, written as the files that vLLM reads; torch is not needed for it.

With head_dim 64 it answers, in random text. With head_dim 16 it loads, passes /health, and kills the engine
at its first request, since vLLM's CPU attention has no kernel for it.

It has as many layers as make a token take longer than what the API server does for one: with 2, tokens came
so fast that vLLM answered nothing else until the stream's end, /metrics neither.
"""

import json
import random
import struct
from itertools import product
from math import prod
from pathlib import Path
from string import ascii_lowercase

LAYERS, HIDDEN, INNER, VOCABULARY = 8, 128, 256, 512
LONGEST = 32_768  # tokens; of rotary positions, nothing is stored
SPECIAL = ("<s>", "</s>", "<pad>")
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def make(folder: Path, head_dim: int = 64) -> Path:
    """Write the model into a folder, the same bytes each time; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    heads = HIDDEN // head_dim
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": LONGEST,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "dtype": "bfloat16",
    }
    special = dict(zip(("bos_token", "eos_token", "pad_token"), SPECIAL, strict=True))
    tokens = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, **special}
    for name, content in {
        "config.json": config,
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": tokens,
    }.items():
        (folder / name).write_text(json.dumps(content, indent=2))
    (folder / "model.safetensors").write_bytes(safetensors())
    return folder


def tokenizer() -> dict[str, object]:
    """Make a byte-level BPE: a token for each byte, and for as many pairs of letters as there is room."""
    bytes_ = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's alphabet: these are themselves
    alphabet = [chr(byte) for byte in bytes_] + [chr(256 + n) for n in range(256 - len(bytes_))]
    room = VOCABULARY - len(SPECIAL) - len(alphabet)
    merges = list(product(ascii_lowercase, repeat=2))[:room]
    words = [*SPECIAL, *alphabet, *map("".join, merges)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": word, "special": True, "normalized": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
            for i, word in enumerate(SPECIAL)
        ],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)}, "merges": merges},
    }


def safetensors() -> bytes:
    """Return all weights in bfloat16, as a safetensors file."""
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "lm_head.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"):
            shapes[f"model.layers.{layer}.{part}.weight"] = (HIDDEN, HIDDEN)
        for part in ("mlp.gate_proj", "mlp.up_proj"):
            shapes[f"model.layers.{layer}.{part}.weight"] = (INNER, HIDDEN)
        shapes[f"model.layers.{layer}.mlp.down_proj.weight"] = (HIDDEN, INNER)
    choose, header, weights, end = random.Random(0), {}, [], 0
    norms = [f"model.layers.{i}.{part}_layernorm.weight" for i in range(LAYERS) for part in NORMS]
    for name, shape in {**shapes, **dict.fromkeys([*norms, "model.norm.weight"], (HIDDEN,))}.items():
        one = struct.pack("<f", 1.0)[2:]  # bfloat16 is the upper half of a float32
        weights.append(
            b"".join(struct.pack("<f", choose.gauss(0, 0.02))[2:] for _ in range(prod(shape)))
            if name in shapes
            else one * HIDDEN
        )
        start, end = end, end + len(weights[-1])
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (start, end)}
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + b"".join(weights)


NORMS = ("input", "post_attention")
