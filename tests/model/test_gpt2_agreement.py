"""Our model and Hugging Face's GPT-2 are the same mathematics: the same weights give the same logits, both ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from quill.model.config import GPTConfig
from quill.model.gpt import GPT

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

CONFIG = GPTConfig(vocab_size=61, block_size=24, n_layer=3, n_head=4, n_embd=32, dropout=0.0, bias=True)
TOP = {
    "token_embedding": "transformer.wte",
    "position_embedding": "transformer.wpe",
    "final_norm": "transformer.ln_f",
}
IN_BLOCK = {
    "attention_norm": "ln_1",
    "attention.query_key_value": "attn.c_attn",
    "attention.output": "attn.c_proj",
    "feed_forward_norm": "ln_2",
    "feed_forward.hidden": "mlp.c_fc",
    "feed_forward.output": "mlp.c_proj",
}


def name_in_gpt2(name: str) -> str:
    module, kind = name.rsplit(".", 1)
    if not module.startswith("blocks."):
        return f"{TOP[module]}.{kind}"
    _, layer, inner = module.split(".", 2)
    return f"transformer.h.{layer}.{IN_BLOCK[inner]}.{kind}"


def swap(name: str, weight: Tensor) -> Tensor:
    """GPT-2 stores its linear maps transposed (as 1×1 convolutions)."""
    is_map = any(part in name for part in ("query_key_value", "output", "hidden")) and name.endswith("weight")
    return weight.T.contiguous() if is_map else weight


@pytest.fixture
def gpt2() -> GPT2LMHeadModel:
    from transformers import GPT2Config, GPT2LMHeadModel  # takes a second, so not when tests are collected

    torch.manual_seed(0)
    # GPT-2 proper uses the tanh approximation of GELU; the library offers the exact function, which is ours.
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=61, n_positions=24, n_layer=3, n_head=4, n_embd=32, activation_function="gelu",
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def test_the_model_and_gpt2_with_the_same_weights_give_the_same_logits(gpt2: GPT2LMHeadModel) -> None:
    model = GPT(CONFIG).eval()
    theirs = gpt2.state_dict()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(swap(name, theirs[name_in_gpt2(name)]))
    tokens_BT = torch.randint(61, (3, 24), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(tokens_BT), gpt2(tokens_BT).logits, rtol=1e-4, atol=1e-4)


def test_weights_converted_to_gpt2_and_back_are_unchanged(gpt2: GPT2LMHeadModel) -> None:
    torch.manual_seed(1)
    ours, back = GPT(CONFIG), GPT(CONFIG)
    theirs = {name_in_gpt2(name): swap(name, p.detach()) for name, p in ours.named_parameters()}
    missing, unexpected = gpt2.load_state_dict(theirs, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], []), "the head is tied, everything else has a place"
    loaded = gpt2.state_dict()
    with torch.no_grad():
        for name, parameter in back.named_parameters():
            parameter.copy_(swap(name, loaded[name_in_gpt2(name)]))
    for (name, a), (_, b) in zip(ours.named_parameters(), back.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert sum(p.numel() for p in gpt2.parameters()) == ours.count_parameters()
