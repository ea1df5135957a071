"""Muon follows its paper: orthogonalized momentum, one matrix at a time or many at once."""

import math

import pytest
import torch
from torch import Tensor

from quill.optim.muon import POLAR_EXPRESS, muon_update, orthogonalize


def random_matrices(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(32, 32), (32, 48), (48, 32), (32, 128), (128, 32), (1, 5)], ids=str)
def test_orthogonalization_makes_singular_values_about_equal(shape: tuple[int, int]) -> None:
    x_NRC = random_matrices(3, *shape)
    left, values, right = torch.linalg.svd(x_NRC, full_matrices=False)
    result_NRC = orthogonalize(x_NRC)
    reached = torch.linalg.svdvals(result_NRC)
    known = values > 0.01 * values.norm(dim=-1, keepdim=True)  # tiny ones may stay small
    assert reached[known].min() > 0.15 and reached.max() < 2
    exact = left @ right
    cosine = (result_NRC * exact).sum((-2, -1)) / (result_NRC.norm(dim=(-2, -1)) * exact.norm(dim=(-2, -1)))
    assert (cosine > 0.85).all(), "singular vectors stay"


@pytest.mark.parametrize("shape", [(96, 96), (96, 384), (384, 96)], ids=str)
def test_orthogonalization_in_bfloat16_is_accurate_enough(shape: tuple[int, int]) -> None:
    left, values, right = torch.linalg.svd(random_matrices(3, *shape), full_matrices=False)
    x_NRC = left * (values * torch.logspace(0, -2, min(shape)))[:, None] @ right  # some strong directions, many weak
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as a step on a GPU computes it
        result_NRC = orthogonalize(x_NRC)
    precise_NRC = orthogonalize(x_NRC)
    assert result_NRC.dtype == torch.bfloat16 and precise_NRC.dtype == torch.float32
    assert torch.linalg.svdvals(result_NRC.float()).max() < 2
    assert ((result_NRC - precise_NRC).norm(dim=(-2, -1)) < 0.05 * precise_NRC.norm(dim=(-2, -1))).all()


def test_a_learning_rate_stored_on_the_device_gives_the_same_update() -> None:
    one, other = (random_matrices(2, 8, 24).unbind() for _ in range(2))
    momenta = [torch.zeros(2, 8, 24).unbind() for _ in range(2)]
    gradients = random_matrices(2, 24, 8).mT.unbind()
    muon_update(one, gradients, momenta[0], lr=0.02, weight_decay=0.3)
    muon_update(other, gradients, momenta[1], lr=torch.tensor(0.02), weight_decay=0.3)
    torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        muon_update(other, gradients, momenta[1], lr=torch.tensor(0.02), weight_decay=0.3)
    assert all(weight.dtype == torch.float32 for weight in other)


def test_orthogonalization_evens_out_one_large_singular_value() -> None:
    x_NRC = random_matrices(1, 16, 16)
    left, _, right = torch.linalg.svd(x_NRC)
    values = torch.tensor([1.0] + [0.02] * 15)
    before, after = values, torch.linalg.svdvals(orthogonalize(left @ values.diag() @ right))[0]
    assert before.max() / before.min() == 50 and after.max() / after.min() < 3


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (24, 8)], ids=str)
def test_matrices_orthogonalized_together_equal_those_by_the_plain_formula(shape: tuple[int, int]) -> None:
    def plainly(x: Tensor) -> Tensor:
        """The iteration as the paper writes it, for one matrix, in float64."""
        x = x.double() if shape[0] <= shape[1] else x.double().T
        x = x / (x.norm() * 1.01 + 1e-7)
        for a, b, c in POLAR_EXPRESS:
            x = a * x + b * (x @ x.T) @ x + c * (x @ x.T) @ (x @ x.T) @ x
        return x if shape[0] <= shape[1] else x.T

    x_NRC = random_matrices(5, *shape)
    expected = torch.stack([plainly(x) for x in x_NRC])
    torch.testing.assert_close(orthogonalize(x_NRC).double(), expected, rtol=1e-3, atol=1e-3)


def test_orthogonalizing_a_zero_matrix_gives_zero() -> None:
    assert (orthogonalize(torch.zeros(2, 4, 12)) == 0).all() and (orthogonalize(torch.zeros(2, 4, 4)) == 0).all()


def test_muon_steps_equal_a_plain_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes, lr, decay, momentum = ((6, 6), (12, 6), (6, 6)), 0.1, 0.2, 0.9
    weights = [torch.randn(shape, generator=generator) for shape in shapes]
    expected = [weight.clone() for weight in weights]
    momenta, buffers = ([torch.zeros(shape) for shape in shapes] for _ in range(2))
    for _ in range(3):
        gradients = [torch.randn(shape, generator=generator) for shape in shapes]
        for weight, gradient, buffer in zip(expected, gradients, buffers, strict=True):
            buffer.copy_(momentum * buffer + (1 - momentum) * gradient)
            ahead = momentum * buffer + (1 - momentum) * gradient
            scale = math.sqrt(max(1, weight.size(0) / weight.size(1)))
            weight.copy_((1 - lr * decay) * weight - lr * scale * orthogonalize(ahead[None])[0])
        muon_update(weights, gradients, momenta, lr=lr, weight_decay=decay, momentum=momentum)
    for weight, copy in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight, copy, rtol=1e-4, atol=1e-5)
