"""Head scores and activations of a tiny GPT-2 agree with those of TransformerLens, given the same weights.

TransformerLens brings over thirty packages, so it is no dependency of the test suite: the test that runs it is skipped
where it is not installed (`pip install transformer-lens`; version 4.3 agrees). The others compute its head detector by
its definition from the attentions of Hugging Face's GPT-2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from lab_models import Subject

from quill.lab.roles.patterns import induction_pattern, mass_on, previous_pattern, same_pattern
from quill.lab.trace import trace
from quill.model.config import GPTConfig
from quill.model.gpt import GPT
from quill.tokenizers.char import CharTokenizer

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

LETTERS = "abcdefghijklmnopqrstuvwxyz "
TEXT = "the cat that the cat saw"
CONFIG = GPTConfig(vocab_size=27, block_size=32, n_layer=3, n_head=4, n_embd=32, dropout=0.0, bias=True)
PATTERNS = {
    "previous_token_head": previous_pattern,
    "duplicate_token_head": same_pattern,
    "induction_head": induction_pattern,
}
MODULES = {
    "attention_norm": "ln_1", "attention.query_key_value": "attn.c_attn", "attention.output": "attn.c_proj",
    "feed_forward_norm": "ln_2", "feed_forward.hidden": "mlp.c_fc", "feed_forward.output": "mlp.c_proj",
}  # fmt: skip


@pytest.fixture
def gpt2() -> GPT2LMHeadModel:
    """Return a GPT-2 of Hugging Face with random weights, large enough for heads to differ."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=27, n_positions=32, n_layer=3, n_head=4, n_embd=32, activation_function="gelu", resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    model.set_attn_implementation("eager")  # which returns attentions
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


@pytest.fixture
def subject(gpt2: GPT2LMHeadModel) -> Subject:
    """Return our model with the same weights."""
    model, theirs = GPT(CONFIG), gpt2.state_dict()
    outer = {"token_embedding": "wte", "position_embedding": "wpe", "final_norm": "ln_f"}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            module, kind = name.rsplit(".", 1)
            if module.startswith("blocks."):
                _, layer, inner = module.split(".", 2)
                weight = theirs[f"transformer.h.{layer}.{MODULES[inner]}.{kind}"]
                linear = kind == "weight" and "norm" not in inner
                parameter.copy_(weight.T if linear else weight)
            else:
                parameter.copy_(theirs[f"transformer.{outer[module]}.{kind}"])
    return Subject(model, CharTokenizer.from_text(LETTERS))


def scores_of(subject: Subject, text: str, name: str) -> np.ndarray:
    """Return the score of TransformerLens's detector from our trace: the mean mass on a mask, over all queries."""
    found, tokens_T = trace(subject, text, "*.weights_*"), subject.tokenizer.encode(text)
    weights_LHTS = np.stack([found[f"blocks.{layer}.attention.weights_HTS"] for layer in range(3)])
    return mass_on(weights_LHTS, PATTERNS[name](tokens_T)).mean(-1)


def test_head_scores_are_those_of_the_published_detector_on_the_attentions_of_gpt2(
    subject: Subject, gpt2: GPT2LMHeadModel
) -> None:
    tokens_T = subject.tokenizer.encode(TEXT)
    with torch.no_grad():
        attentions = gpt2(torch.from_numpy(tokens_T)[None], output_attentions=True).attentions
    weights_LHTS = torch.stack(attentions)[:, 0].numpy()
    places: dict[str, list[tuple[int, int]]] = {name: [] for name in PATTERNS}
    for t in range(len(tokens_T)):
        for s in range(t + 1):
            if s == t - 1:
                places["previous_token_head"].append((t, s))
            if s < t and tokens_T[s] == tokens_T[t]:
                places["duplicate_token_head"].append((t, s))
            if s >= 1 and tokens_T[s - 1] == tokens_T[t]:
                places["induction_head"].append((t, s))
    for name, pairs in places.items():
        expected_LH = sum(weights_LHTS[:, :, t, s] for t, s in pairs) / weights_LHTS.sum((2, 3))
        np.testing.assert_allclose(scores_of(subject, TEXT, name), expected_LH, atol=1e-5)


def test_a_trace_holds_the_hidden_states_and_attentions_of_gpt2(subject: Subject, gpt2: GPT2LMHeadModel) -> None:
    found = trace(subject, TEXT)
    with torch.no_grad():
        theirs: Any = gpt2(torch.from_numpy(found.tokens)[None], output_attentions=True, output_hidden_states=True)
    for layer in range(3):
        ours = found[f"blocks.{layer}.input_TD"]
        np.testing.assert_allclose(ours, theirs.hidden_states[layer][0].numpy(), atol=1e-4)
        ours = found[f"blocks.{layer}.attention.weights_HTS"]
        np.testing.assert_allclose(ours, theirs.attentions[layer][0].numpy(), atol=1e-5)
    np.testing.assert_allclose(found["final_norm_TD"], theirs.hidden_states[3][0].numpy(), atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_scores_and_cache_are_those_of_transformer_lens(subject: Subject, gpt2: GPT2LMHeadModel) -> None:
    lens = pytest.importorskip("transformer_lens", reason="transformer-lens is not installed")
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(
        models.WordLevel({c: i for i, c in enumerate(subject.tokenizer.decode(range(27)))}, unk_token="a")
    )
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")  # type: ignore[assignment]
    letters = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="a", eos_token="a", pad_token="a")
    bridge = lens.TransformerBridge.boot_transformers("gpt2", hf_model=gpt2, tokenizer=letters, device="cpu")
    text = subject.tokenizer.decode(bridge.to_tokens(TEXT)[0].numpy())
    found = trace(subject, text)
    logits, cache = bridge.run_with_cache(torch.from_numpy(found.tokens)[None])
    np.testing.assert_allclose(found["logits_TV"], logits[0].detach().numpy(), atol=1e-4)
    names = {
        "input_TD": "hook_resid_pre", "middle_TD": "hook_resid_mid", "output_TD": "hook_resid_post",
        "attention.weights_HTS": "attn.hook_pattern", "attention.output_TD": "hook_attn_out",
        "feed_forward.output_TD": "hook_mlp_out", "feed_forward.hidden_TF": "mlp.hook_post",
    }  # fmt: skip
    for layer in range(3):
        for ours, theirs in names.items():
            expected = cache[f"blocks.{layer}.{theirs}"][0].detach().numpy()
            np.testing.assert_allclose(found[f"blocks.{layer}.{ours}"], expected, atol=1e-4, err_msg=theirs)
    # Imported by name, so that the types are the same with and without the package.
    detect_head: Any = pytest.importorskip("transformer_lens.head_detector").detect_head
    for name in PATTERNS:
        np.testing.assert_allclose(scores_of(subject, text, name), detect_head(bridge, TEXT, name).numpy(), atol=1e-4)
