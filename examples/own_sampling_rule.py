"""Generate with a sampling rule of your own: all it needs is `model.logits`.

    python examples/own_sampling_rule.py [OUT_DIR]

The rule is locally typical sampling (Meister et al. 2022, arXiv:2202.00666, section 3): keep the tokens whose
information -ln p is closest to the entropy of the distribution, as many as hold the probability `mass`, and draw from
these. Without a run's folder, the small model of own_text.py is trained first.
"""

import sys

import torch
from own_text import SETTINGS

import quill


def typical(logits_V: torch.Tensor, mass: float = 0.9) -> torch.Tensor:
    """Return the probabilities of locally typical sampling, shape (V,)."""
    logp_V = logits_V.log_softmax(0)
    entropy = -(logp_V.exp() * logp_V).sum()
    order_V = (-logp_V - entropy).abs().argsort()
    before_V = logp_V[order_V].exp().cumsum(0) - logp_V[order_V].exp()  # probability of the tokens that are closer
    kept_V = order_V[before_V < mass]
    return torch.zeros_like(logp_V).index_copy(0, kept_V, logp_V[kept_V].exp()).div(logp_V[kept_V].exp().sum())


def generate(model: quill.LanguageModel, prompt: str, length: int, generator: torch.Generator) -> str:
    """Return the prompt and `length` tokens, each drawn by the rule."""
    tokens = list(model.tokenizer.encode(prompt))
    for _ in range(length):
        logits_TV = model.logits(tokens[-model.config.block_size :])
        tokens.append(int(torch.multinomial(typical(logits_TV[-1].cpu()), 1, generator=generator)))
    return model.tokenizer.decode(tokens)


if __name__ == "__main__":
    new = {"dataset": "pydoc", "out_dir": "out-own-rule", "overwrite": True, **SETTINGS}
    model = quill.load(sys.argv[1]) if len(sys.argv) > 1 else quill.run(**new).load()
    print(generate(model, "The ", 200, torch.Generator().manual_seed(1)))
