"""Contestants that generate text on a GPU at full size, in float32, with the same weights where these can be shared.

One of them works as gpt-fast does for large models, with Quill's own model: a static cache, and a step for one token
that PyTorch's compiler turns into a CUDA graph (`mode="reduce-overhead"`), sampling included. It is the strongest of
the others, and it gets what Quill gets: the same static twin of the model, and nothing is read back before the end.
nanoGPT is compiled too; its windows grow with the text, so the compiler treats their length as dynamic.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import generators
import torch
from generators import TEMPERATURE, TOP_K, Generate
from torch import Tensor
from torch._dynamo.utils import counters

from quill.engines.cuda_engine import CudaEngine
from quill.engines.make import make_engine
from quill.engines.static_model import StaticModel
from quill.model.cache import KVCache
from quill.model.gpt import GPT

NANOGPT, STATIC = "nanoGPT, compiled", "static cache, compiled"
TARGETS = {NANOGPT: 10, STATIC: 2}  # times as fast, one text


def gpu_contestants(model: GPT, texts: int, nanogpt: Path | None) -> dict[str, Generate]:
    """Return the contestants available here, ready to generate this many texts at once."""
    device = model.token_embedding.weight.device
    contestants = {
        "Quill": generators.engine_generator(make_engine(model, "cuda", slots=texts)),
        "Quill, compiled": generators.engine_generator(CudaEngine(model, slots=texts, compiled=True)),
        "Quill, torch": generators.engine_generator(make_engine(model, "torch", slots=texts)),
        STATIC: static_generator(model, texts),
    }
    if importlib.util.find_spec("transformers"):
        contestants["transformers"] = generators.transformers_generator(model, model.config.block_size)
    if nanogpt:
        contestants[NANOGPT] = generators.nanogpt_generator(nanogpt, str(device), compiled=True)
    return contestants


def static_generator(model: GPT, texts: int) -> Generate:
    """Return a contestant that works like gpt-fast: one call of a compiled step, a CUDA graph, for each token."""
    static = StaticModel(model, texts)
    cache, device = static.cache, model.token_embedding.weight.device
    cache.active_B.fill_(1)
    # Tensors that a graph changes must have fixed addresses; else the compiler makes no graph.
    holders = [*static.twin.parameters(), *static.twin.buffers(), *cache.keys_LBKSE, *cache.values_LBKSE]
    for tensor in (*holders, *(value for value in vars(cache).values() if isinstance(value, Tensor))):
        torch._dynamo.mark_static_address(tensor)

    def one_token(tokens_B: Tensor) -> Tensor:
        return sample(static(tokens_B))

    compiled = torch.compile(one_token, mode="reduce-overhead", fullgraph=True, dynamic=False)

    @torch.no_grad()
    def generate(prompts: list[list[int]], new_tokens: int) -> None:
        read = KVCache(model.config, texts, device)
        tokens_B = sample(model(torch.tensor(prompts, device=device), read)[:, -1])
        for layer, keys_BKSE in enumerate(cache.keys_LBKSE):
            keys_BKSE.copy_(read.keys_LBHSE[layer])
            cache.values_LBKSE[layer].copy_(read.values_LBHSE[layer])
        cache.tokens_BS.copy_(read.tokens_BS)
        cache.positions_B.fill_(read.length)
        written = [tokens_B]
        for _ in range(new_tokens - 1):
            written.append(compiled(written[-1]).clone())  # the next replay overwrites its output
        tokens_BT = torch.stack(written, dim=1).cpu()
        assert tokens_BT.shape == (texts, new_tokens) and cache.positions_B[0] == read.length + new_tokens - 1
        if skipped := counters["inductor"].pop("cudagraph_skips", 0):
            print(f"{STATIC}: the compiler skipped {skipped} CUDA graphs, so it is not at its best", file=sys.stderr)

    return generate


def sample(logits_BV: Tensor) -> Tensor:
    """Return a token of each row: temperature, top-k, and exponential variables, without synchronisation."""
    # argmax of p_i / e_i with e_i ~ Exp(1) is i with probability p_i      Devroye 1986, section V.2
    logits_BV = logits_BV / TEMPERATURE
    last_kept_B1 = logits_BV.topk(min(TOP_K, logits_BV.size(-1)), dim=-1).values[:, -1:]
    p_BV = torch.where(logits_BV < last_kept_B1, -float("inf"), logits_BV).softmax(-1)
    return (p_BV / torch.empty_like(p_BV).exponential_(1)).argmax(-1)
