"""A group of one changes nothing, and what processes compare before they begin."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from quill.data.dataset import Dataset
from quill.distributed.environment import Ranks
from quill.distributed.group import ALONE, Group
from quill.distributed.joining import difference, joined
from quill.errors import ProcessGroupError
from quill.evaluation.split_loss import evaluate_split
from quill.model.build import build_model
from quill.model.config import GPTConfig


def test_a_group_of_one_returns_what_it_is_given() -> None:
    tensor = torch.ones(3)
    assert ALONE.sum(tensor) is tensor and ALONE.mean(tensor) is tensor and ALONE.share([1]) == [1]
    assert ALONE.any(True) and not ALONE.any(False) and ALONE.decide("patience") == "patience"
    assert ALONE.share_out(torch.neg) is torch.neg and ALONE.select_device("cuda:1") == "cuda:1"
    state = torch.get_rng_state()
    ALONE.draw_own_numbers(1, 2)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_rank_but_the_first_draws_numbers_of_its_own_in_each_step() -> None:
    def draw(rank: int, step: int) -> float:
        Group(Ranks(rank, 3)).draw_own_numbers(seed=5, step=step)
        return torch.rand(()).item()

    with torch.random.fork_rng():
        assert len({draw(1, 0), draw(1, 1), draw(2, 0), draw(2, 1)}) == 4
        assert draw(1, 7) == draw(1, 7)


class Recorded(Group):
    """A process of a group whose other processes are not there: a sum is that of its own part."""

    part: Tensor

    def sum(self, tensor: Tensor) -> Tensor:
        self.part = tensor
        return tensor


def test_processes_share_out_the_batches_of_an_evaluation_and_none_is_scored_twice(
    model_config: GPTConfig, dataset: Dataset
) -> None:
    model = build_model(model_config)
    options: dict[str, Any] = {"batch_size": 3, "max_windows": 10}
    groups = [Recorded(Ranks(rank, 3)) for rank in range(3)]
    for group in groups:
        evaluate_split(model, dataset.val, dataset.tokenizer, **options, group=group)
    parts = torch.stack([group.part for group in groups])
    assert ((parts != 0).sum(0) == 1).all() and (parts != 0).any(1).all()
    whole = evaluate_split(model, dataset.val, dataset.tokenizer, **options)
    in_order = 0.0
    for each in parts.sum(0).tolist():
        in_order += each
    assert in_order / whole.tokens == whole.loss


def test_the_first_difference_between_two_processes_is_named_with_both_machines() -> None:
    here, there = {"machine": "a", "Quill": "1.0", "seed": "1"}, {"machine": "b", "Quill": "1.0", "seed": "2"}
    assert difference(here, there, 3).startswith(
        "the processes differ in seed: rank 0 (a) has 1, rank 3 (b) has 2; start all of them"
    )
    assert difference(here, here | {"machine": "b"}, 3) == ""
    assert "differ in seed: rank 0 (a) has 1, rank 1 (b) has nothing" in difference(
        here, {"machine": "b", "Quill": "1.0"}, 1
    )


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A port that this process has bound and on which nobody answers, as the port of the run."""
    with socket.socket() as bound:
        bound.bind(("", 0))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(bound.getsockname()[1]))
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        yield bound


def test_an_address_that_nobody_answers_is_one_line_after_the_time_to_join(taken: socket.socket) -> None:
    with (
        pytest.raises(ProcessGroupError, match=r"rank 1 cannot reach MASTER_ADDR=127") as caught,
        joined(Ranks(1, 2, 1), {}, seconds=0.1),
    ):
        pytest.fail("joined")
    assert caught.value.reported is False and "Connection refused" in str(caught.value)


def test_a_port_that_another_program_uses_is_one_line(taken: socket.socket) -> None:
    taken.listen()
    with (
        pytest.raises(ProcessGroupError, match=r"is in use on 127.0.0.1: choose"),
        joined(Ranks(0, 2, 0), {}),
    ):
        pytest.fail("joined")


def test_a_process_that_does_not_come_is_named(taken: socket.socket) -> None:
    taken.close()
    with (
        pytest.raises(ProcessGroupError, match=r"rank 1 of 2 has not come within 0.2 s"),
        joined(Ranks(0, 2, 0), {}, seconds=0.2),
    ):
        pytest.fail("joined")
