"""Acceleration replaces submodules: names and random numbers stay, copies are whole, edited classes are left alone."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quill.acceleration.apply import apply_acceleration
from quill.acceleration.replacement import as_subclass
from quill.engines.agreement import is_built_in
from quill.model import gpt, modern
from quill.model.build import Model, build_model
from quill.model.config import GPTConfig, ModelConfig, ModernConfig

CLASSIC = GPTConfig(11, block_size=16, n_layer=2, n_head=2, n_embd=16, dropout=0.3)
MODERN = ModernConfig(11, block_size=16, n_layer=2, n_head=2, n_embd=16, dropout=0.3)
each_model = pytest.mark.parametrize("config", [CLASSIC, MODERN], ids=["classic", "modern"])
TOKENS_BT = torch.arange(32).view(2, 16) % 11


def accelerate(model: Model, gradient_checkpointing: bool = False) -> list[str]:
    """Apply everything that a run on a CPU gets, and return the warnings."""
    warnings: list[str] = []
    apply_acceleration(
        model, torch.device("cpu"), compiled=False, gradient_checkpointing=gradient_checkpointing,
        sparse_gradients=True, warn=warnings.append,
    )  # fmt: skip
    return warnings


def random_model(config: ModelConfig) -> Model:
    torch.manual_seed(0)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


@each_model
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_parameters_keep_their_names_order_and_identity(config: ModelConfig, gradient_checkpointing: bool) -> None:
    model = build_model(config)
    before = list(model.named_parameters())
    keys, state = list(model.state_dict()), torch.get_rng_state()
    assert accelerate(model, gradient_checkpointing) == []
    after = list(model.named_parameters())
    assert [name for name, _ in after] == [name for name, _ in before]
    assert all(mine is other for (_, mine), (_, other) in zip(after, before, strict=True))
    assert list(model.state_dict()) == keys
    assert torch.equal(torch.get_rng_state(), state), "the comparison draws its own random numbers"


def test_repr_of_a_model_shows_the_replaced_modules() -> None:
    classic, modern = build_model(CLASSIC), build_model(MODERN)
    assert accelerate(classic) == accelerate(modern) == []
    for name in ("CPUAttention", "RecomputedFeedForward", "FastDropout"):
        assert f"{name}(" in repr(classic)
    for name in ("CPUModernAttention", "FusedRMSNorm", "FusedReLUSquared", "FusedRotary", "FastDropout", "sparse=True"):
        assert name in repr(modern)
    assert ": Dropout(" not in repr(classic) + repr(modern) and ": RMSNorm(" not in repr(modern)


@each_model
def test_applying_acceleration_twice_equals_applying_it_once(config: ModelConfig) -> None:
    model = build_model(config)
    accelerate(model, gradient_checkpointing=True)
    once = repr(model)
    assert accelerate(model, gradient_checkpointing=True) == [] and repr(model) == once


@each_model
def test_engines_accept_an_accelerated_model_as_unedited(config: ModelConfig) -> None:
    """A run samples from its accelerated model: fast engines need not compare a whole context each time."""
    model = build_model(config)
    accelerate(model)
    assert is_built_in(model)
    setattr(model.final_norm, "forward", lambda x: x)  # noqa: B010
    assert not is_built_in(model)


@each_model
def test_a_model_that_is_compiled_or_not_on_a_cpu_keeps_its_modules(config: ModelConfig) -> None:
    model = build_model(config)
    plain = repr(model)
    for device, compiled in ((torch.device("cpu"), True), (torch.device("cuda"), False)):
        apply_acceleration(model, device, compiled=compiled, gradient_checkpointing=False, sparse_gradients=True)
        assert repr(model) == plain


@each_model
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_a_copy_of_an_accelerated_model_has_weights_of_its_own(
    config: ModelConfig, gradient_checkpointing: bool, clone: Callable[[Model], Model]
) -> None:
    """W10: a closure over the original made a copy compute with the original's weights."""
    model = random_model(config)
    accelerate(model, gradient_checkpointing)
    model(TOKENS_BT).sum().backward()
    model.zero_grad()
    expected = model.eval()(TOKENS_BT)
    double = clone(model)
    assert torch.equal(double(TOKENS_BT), expected)
    with torch.no_grad():
        for parameter in double.parameters():
            parameter.zero_()
    assert torch.equal(model(TOKENS_BT), expected) and not double(TOKENS_BT).any()


# ---- U0: a reader edits a class of the model, and training follows the edit ----


def soft_activation(self: modern.ReLUSquared, x: Tensor) -> Tensor:
    return F.silu(x)


def larger_epsilon(self: modern.RMSNorm, x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),), eps=2e-6)


def reversed_rotation(self: modern.Rotary, x_BTHE: Tensor, start: int) -> Tensor:
    return x_BTHE.flip(-1)


def recent_keys_only(self: nn.Module, q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor) -> Tensor:
    mask_TT = torch.ones(q_BHTE.size(2), k_BHSE.size(2), dtype=torch.bool).tril().triu(-9)
    return F.scaled_dot_product_attention(q_BHTE, k_BHSE, v_BHSE, attn_mask=mask_TT)


def without_output_dropout(self: gpt.FeedForward, x_BTD: Tensor) -> Tensor:
    return self.output(self.activation(self.hidden(x_BTD)).square())


def straight_through(self: modern.ReLUSquared, x: Tensor) -> Tensor:
    return x + (F.relu(x).square() - x).detach()  # the same output, another gradient


@pytest.mark.parametrize(
    ("config", "owner", "method", "edit", "faster"),
    [
        (MODERN, modern.ReLUSquared, "forward", soft_activation, "FusedReLUSquared"),
        (MODERN, modern.ReLUSquared, "forward", straight_through, "FusedReLUSquared"),
        (MODERN, modern.RMSNorm, "forward", larger_epsilon, "FusedRMSNorm"),
        (MODERN, modern.Rotary, "forward", reversed_rotation, "FusedRotary"),
        (MODERN, modern.Attention, "attend", recent_keys_only, "CPUModernAttention"),
        (replace(MODERN, dropout=0.0), modern.Attention, "attend", recent_keys_only, "CPUModernAttention"),
        (CLASSIC, gpt.Attention, "attend", recent_keys_only, "CPUAttention"),
        (CLASSIC, gpt.FeedForward, "forward", without_output_dropout, "RecomputedFeedForward"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_an_edited_class_keeps_its_own_code_and_one_line_says_so(
    config: ModelConfig, owner: type, method: str, edit: Callable, faster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, method, edit)
    model = random_model(config)
    plain = copy.deepcopy(model)
    warnings = accelerate(model)
    assert len(warnings) == 1 and warnings[0].startswith(f"{owner.__name__} computes something else")
    assert faster not in repr(model) and "FastDropout" in repr(model)
    found, expected = model.eval()(TOKENS_BT), plain.eval()(TOKENS_BT)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for each in (found, expected):
        each.square().sum().backward()
    for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
        mine_grad = mine.grad.to_dense() if mine.grad is not None and mine.grad.is_sparse else mine.grad
        torch.testing.assert_close(mine_grad, other.grad, rtol=1e-3, atol=1e-2)


def test_a_parameter_added_to_a_class_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gain that starts at 1 changes no output yet. The comparison of gradients notices it."""

    def build(self: modern.RMSNorm) -> None:
        nn.Module.__init__(self)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * F.rms_norm(x, (x.size(-1),), eps=1e-6)

    monkeypatch.setattr(modern.RMSNorm, "__init__", build)
    monkeypatch.setattr(modern.RMSNorm, "forward", forward)
    monkeypatch.setattr(modern.ModernGPT, "initialize", lambda self: None)
    model = build_model(MODERN)
    (warning,) = accelerate(model)
    assert "RMSNorm" in warning
    model(TOKENS_BT).square().sum().backward()
    gain = model.get_parameter("final_norm.gain")
    assert gain.grad is not None and gain.grad.abs() > 0


def test_a_class_with_a_renamed_method_counts_as_edited(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(CLASSIC)
    monkeypatch.delattr(gpt.Attention, "attend")
    assert [w.split()[0] for w in accelerate(model)] == ["Attention"]


def test_a_subclass_is_not_replaced() -> None:
    class Quieter(modern.ReLUSquared):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / 2

    model = build_model(MODERN)
    for name in ("blocks.0.feed_forward", "blocks.1.feed_forward"):
        setattr(model.get_submodule(name), "activation", Quieter())  # noqa: B010
    assert accelerate(model) == [] and "Quieter()" in repr(model)


def test_a_module_made_into_a_subclass_shares_parameters_but_not_the_list_of_submodules() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    linear = nn.Linear(3, 2).eval()
    doubled = as_subclass(linear, Doubled)
    doubled.extra = nn.Identity()
    assert doubled.weight is linear.weight and not doubled.training and not list(linear.children())
    x = torch.randn(1, 3)
    torch.testing.assert_close(doubled(x), 2 * linear(x))
