"""Contestants that generate text at full size: Quill's engines, transformers, nanoGPT and llama.cpp, all of one shape.

A contestant takes token ids and continues them with its own sampler (top-k 40, temperature 0.8), called as its own
users would call it: from tokens to tokens, without a tokenizer. llama.cpp reads the weights from a GGUF file that is
made here, in float32 or in its own 8 bits (Q8_0); the names of its GPT-2 and of its tensors are those of the format.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import import_file

from quill.engines.base import Engine
from quill.engines.make import make_engine
from quill.engines.request import Request, SamplingConfig
from quill.generation.batch_generator import BatchGenerator
from quill.model.config import GPTConfig
from quill.model.gpt import GPT

TOP_K, TEMPERATURE = 40, 0.8
CONFIG = GPTConfig(vocab_size=65, dropout=0.0)  # full size, on Tiny Shakespeare's characters

Generate = Callable[[list[list[int]], int], None]
"""Generates this many new tokens for each of these prompts, which have equal length."""


def full_size_model() -> GPT:
    """Return a full-size model with random weights; speed does not depend on them."""
    torch.manual_seed(0)
    return GPT(CONFIG).eval()


def quill_generator(model: GPT, engine: str, quantization: str | None = None) -> Generate:
    """Return one of Quill's engines by name."""
    return engine_generator(make_engine(model, engine, quantization=quantization, slots=16))


def engine_generator(engine: Engine) -> Generate:
    """Return one of Quill's engines behind its queue."""
    batch = BatchGenerator(engine)
    how = SamplingConfig(TEMPERATURE, top_k=TOP_K)

    def generate(prompts: list[list[int]], new_tokens: int) -> None:
        requests = [Request(tuple(prompt), new_tokens, how, 0, row) for row, prompt in enumerate(prompts)]
        assert sum(event.token is not None for _, event in batch.follow(requests)) == new_tokens * len(prompts)

    return generate


def transformers_generator(model: GPT, positions: int) -> Generate:
    """Return the `generate` of transformers' GPT-2, with its own cache and its default attention."""
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    c = model.config
    config = GPT2Config(
        vocab_size=c.vocab_size,
        n_positions=max(c.block_size, positions),  # it cannot exceed them
        n_embd=c.n_embd,
        n_layer=c.n_layer,
        n_head=c.n_head,
        bos_token_id=None,
        eos_token_id=None,  # else a random model may end early
        pad_token_id=0,
    )
    device = model.token_embedding.weight.device
    theirs: Any = GPT2LMHeadModel(config).eval()
    theirs.to(device)

    def generate(prompts: list[list[int]], new_tokens: int) -> None:
        prompt_BT = torch.tensor(prompts, device=device)
        how = {"do_sample": True, "top_k": TOP_K, "temperature": TEMPERATURE, "max_new_tokens": new_tokens}
        tokens_BT = theirs.generate(prompt_BT, attention_mask=torch.ones_like(prompt_BT), **how).cpu()
        assert tokens_BT.shape == (len(prompts), len(prompts[0]) + new_tokens)

    return generate


def nanogpt_model(checkout: Path) -> Any:
    """Return nanoGPT's full-size model from a checkout."""
    module = import_file(checkout / "model.py", "nanogpt_model")
    with contextlib.redirect_stdout(io.StringIO()):
        return module.GPT(module.GPTConfig(**nanogpt_shape())).eval()


def nanogpt_shape() -> dict[str, Any]:
    """Return the full size in nanoGPT's names."""
    shape = {name: getattr(CONFIG, name) for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")}
    return {**shape, "dropout": 0.0, "bias": False}


def nanogpt_generator(checkout: Path, device: str = "cpu", compiled: bool = False) -> Generate:
    """Return the `generate` of a nanoGPT checkout."""
    model = nanogpt_model(checkout).to(device)
    if compiled:
        model.compile()  # the module itself: `generate` would bypass what torch.compile(model) returns

    def generate(prompts: list[list[int]], new_tokens: int) -> None:
        prompt_BT = torch.tensor(prompts, device=device)
        tokens_BT = model.generate(prompt_BT, new_tokens, temperature=TEMPERATURE, top_k=TOP_K).cpu()
        assert tokens_BT.shape == (len(prompts), len(prompts[0]) + new_tokens)

    return generate


def has_llama() -> bool:
    """Return whether llama.cpp and the library that writes its files are installed."""
    return all(importlib.util.find_spec(name) for name in ("llama_cpp", "gguf"))


def llama_generator(model: GPT, kind: str, folder: Path, threads: int) -> Generate:
    """Return llama.cpp with this model's weights, `kind` F32 or Q8_0; one text at a time, inside the context."""
    llama_cpp: Any = importlib.import_module("llama_cpp")  # optional: installing it needs a compiler

    file = write_gguf(model, kind, folder / f"full-size-{kind}.gguf")
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = model.config.block_size
    settings.n_threads = settings.n_threads_batch = threads
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    theirs = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
    assert theirs, "llama.cpp cannot read the file"
    context = llama_cpp.llama_init_from_model(theirs, settings)
    sampler = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    llama_cpp.llama_sampler_chain_add(sampler, llama_cpp.llama_sampler_init_top_k(TOP_K))
    llama_cpp.llama_sampler_chain_add(sampler, llama_cpp.llama_sampler_init_temp(TEMPERATURE))
    llama_cpp.llama_sampler_chain_add(sampler, llama_cpp.llama_sampler_init_dist(0))

    def generate(prompts: list[list[int]], new_tokens: int) -> None:
        assert quiet
        [prompt] = prompts
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        tokens = (llama_cpp.llama_token * len(prompt))(*prompt)
        one = (llama_cpp.llama_token * 1)()
        for step in range(new_tokens):
            batch = llama_cpp.llama_batch_get_one(one if step else tokens, 1 if step else len(prompt))
            assert llama_cpp.llama_decode(context, batch) == 0
            one[0] = llama_cpp.llama_sampler_sample(sampler, context, -1)

    return generate


def write_gguf(model: GPT, kind: str, file: Path) -> Path:
    """Write a classic model as a GPT-2 in GGUF; missing biases, which llama.cpp needs, are zeros."""
    gguf: Any = importlib.import_module("gguf")

    c = model.config
    writer = gguf.GGUFWriter(file, "gpt2")
    writer.add_context_length(c.block_size)
    writer.add_embedding_length(c.n_embd)
    writer.add_block_count(c.n_layer)
    writer.add_feed_forward_length(4 * c.n_embd)
    writer.add_head_count(c.n_head)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([chr(ord("!") + i) for i in range(c.vocab_size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * c.vocab_size)
    writer.add_token_merges(["! !"])  # a vocabulary without merges is refused
    q8 = gguf.GGMLQuantizationType.Q8_0

    def add(name: str, weight: torch.Tensor, small: bool = False) -> None:
        array = weight.detach().numpy().astype(np.float32)
        if kind == "Q8_0" and not small:
            writer.add_tensor(name, gguf.quants.quantize(array, q8), raw_dtype=q8)
        else:
            writer.add_tensor(name, array)

    names = {
        "attn_norm": "attention_norm",
        "attn_qkv": "attention.query_key_value",
        "attn_output": "attention.output",
        "ffn_norm": "feed_forward_norm",
        "ffn_up": "feed_forward.hidden",
        "ffn_down": "feed_forward.output",
    }
    add("token_embd.weight", model.token_embedding.weight)
    add("position_embd.weight", model.position_embedding.weight, small=True)
    add("output_norm.weight", model.final_norm.weight, small=True)
    add("output_norm.bias", torch.zeros(c.n_embd), small=True)
    for layer in range(c.n_layer):
        for theirs, ours in names.items():
            weight = model.get_parameter(f"blocks.{layer}.{ours}.weight")
            add(f"blk.{layer}.{theirs}.weight", weight, small=weight.dim() == 1)
            add(f"blk.{layer}.{theirs}.bias", torch.zeros(len(weight)), small=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
