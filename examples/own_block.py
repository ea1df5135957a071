"""Put a block of your own into the model, train it and the standard one, and test that it is still a GPT.

    python examples/own_block.py

The feed-forward network becomes a SwiGLU (Shazeer 2020, arXiv:2002.05202). Here it replaces the standard one for this
process only; to keep it, write it into model/gpt.py.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import quill
from quill.model import gpt


class GatedFeedForward(nn.Module):
    def __init__(self, config: quill.GPTConfig) -> None:
        super().__init__()
        width = 8 * config.n_embd // 3  # about as many weights as the standard one
        self.hidden = nn.Linear(config.n_embd, 2 * width, bias=False)
        self.output = nn.Linear(width, config.n_embd, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        value_BTF, gate_BTF = self.hidden(x_BTD).chunk(2, dim=-1)
        return self.output(F.silu(gate_BTF) * value_BTF)


for name, feed_forward in {"standard": gpt.FeedForward, "gated": GatedFeedForward}.items():
    gpt.FeedForward = feed_forward
    run = quill.run(config="debug", out_dir=f"out-block-{name}", overwrite=True, progress=False, sample_tokens=0)
    model = run.load().model
    print(f"{name}: {model.count_parameters():,} parameters, validation loss {run.best_val_loss:.3f} (estimate)")
    tokens_BT = torch.arange(32)[None]
    with torch.no_grad():
        changed_BTV = model(torch.where(tokens_BT < 20, tokens_BT, 0))
        assert torch.equal(changed_BTV[:, :20], model(tokens_BT)[:, :20]), "a token changes earlier logits"
        cache = quill.KVCache(model.config)
        cached_BTV = torch.cat([model(token_B1, cache) for token_B1 in tokens_BT.split(1, dim=1)], dim=1)
        torch.testing.assert_close(cached_BTV, model(tokens_BT), rtol=1e-4, atol=1e-4)
