"""Generation of tokens: the cache changes no result, samples are independent, and the model stays as it was."""

from functools import cache
from itertools import islice

import numpy as np
import pytest
import torch
from reference_sampling import choose_tokens

from quill.engines.base import Engine
from quill.engines.cuda_engine import CudaEngine
from quill.engines.make import make_engine
from quill.engines.random_numbers import uniforms
from quill.engines.request import SamplingConfig
from quill.engines.torch_engine import TorchEngine
from quill.errors import CheckpointError, ConfigError
from quill.generation.generate_tokens import generate_tokens
from quill.model.build import Model, build_model
from quill.model.config import GPTConfig, ModelConfig
from quill.model.modes import evaluation_mode

PROMPT = [3, 1, 4, 1, 5]


def tiny_model(block_size: int = 16, dropout: float = 0.0, config: ModelConfig | None = None) -> Model:
    """A random model whose logits are spread wide enough that sampling matters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classic = GPTConfig(vocab_size=11, block_size=block_size, n_layer=2, n_head=2, n_embd=16, dropout=dropout)
        model = build_model(config or classic).eval()
        for name, parameter in model.named_parameters():
            if isinstance(model.config, GPTConfig):
                parameter.data.mul_(8)
            elif name != "embedding_skip":
                parameter.data.normal_(std=0.5)
    return model


def engine_of(model: Model, name: str, slots: int = 1) -> Engine:
    """Any engine on a CPU, where the one for GPUs does its steps one operation after another."""
    return CudaEngine(model, slots=slots) if name == "cuda" else make_engine(model, name, slots=slots)


def write(model: Model | Engine, prompt: list[int], count: int, **options) -> list[list[int]]:
    """Return one list of tokens a row."""
    engine = TorchEngine(model, slots=4) if isinstance(model, torch.nn.Module) else model
    steps = list(generate_tokens(engine, prompt, max_new_tokens=count, **options))
    return [list(row) for row in zip(*steps, strict=True)]


@torch.no_grad()
def write_without_cache(
    model: Model, prompt: list[int], count: int, sampling: SamplingConfig, seed: int, row: int
) -> list[int]:
    """Generate without a cache: every token from a window of its own, as learned positions have it."""
    block_size = model.config.block_size
    tokens, start = list(prompt), max(0, len(prompt) - block_size)
    for position in range(count):
        if len(tokens) - start > block_size:  # full: go on with the last half
            start = len(tokens) - max(1, block_size // 2)
        logits_1V = model(torch.tensor([tokens[start:]]))[:, -1]
        uniform = torch.from_numpy(uniforms(seed, [row], position, 1)[0])
        tokens.append(int(choose_tokens(logits_1V, sampling, uniform)))
    return tokens[len(prompt) :]


# The core suite has each case with the compiled step, and with the slower engines each length and each sampling once.
SAMPLINGS = [SamplingConfig(), SamplingConfig(0), SamplingConfig(0.8, top_k=5, top_p=0.9)]
LENGTHS = [1, 5, 15, 16, 17, 40]
WITH_CACHE = [
    pytest.param(engine, sampling, length, marks=[] if engine == "numba" or i % 3 == j else [pytest.mark.long])
    for engine in ("torch", "numba", "cuda")
    for i, length in enumerate(LENGTHS)
    for j, sampling in enumerate(SAMPLINGS)
]


@pytest.mark.parametrize(("engine", "sampling", "prompt_length"), WITH_CACHE)
def test_tokens_with_the_cache_equal_tokens_without_it(sampling: SamplingConfig, prompt_length: int, engine: str):
    model, prompt = tiny_model(), (PROMPT * 8)[:prompt_length]
    rows = write(engine_of(model, engine, slots=2), prompt, 40, num_samples=3, sampling=sampling, seed=9)
    assert rows == expected_rows(prompt_length, sampling)


@cache
def expected_rows(prompt_length: int, sampling: SamplingConfig) -> list[list[int]]:
    prompt = (PROMPT * 8)[:prompt_length]
    return [write_without_cache(tiny_model(), prompt, 40, sampling, 9, row) for row in range(3)]


@pytest.mark.parametrize("block_size", [1, 2, 3])
@pytest.mark.parametrize("engine", ["torch", "numba", "cuda"])
def test_generation_continues_past_the_smallest_context(block_size: int, engine: str):
    model = tiny_model(block_size)
    expected = write_without_cache(model, PROMPT, 20, SamplingConfig(), 0, 0)
    assert write(engine_of(model, engine), PROMPT, 20) == [expected]


def test_past_the_context_each_token_costs_a_bounded_amount():
    model, read = tiny_model(), []
    model.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0].size(1)))
    write(model, PROMPT, 100)
    assert max(read) <= model.config.block_size // 2 and sum(read) <= len(PROMPT) + 2 * 100
    assert read[0] == len(PROMPT) and len(read) == 100  # no pass for a token that nobody asked for


def test_the_prompt_is_read_once_for_all_samples():
    model, batches = tiny_model(), []
    model.register_forward_pre_hook(lambda _, arguments: batches.append(tuple(arguments[0].shape)))
    write(model, PROMPT, 3, num_samples=4)
    assert batches == [(1, len(PROMPT)), *[(1, 1)] * 4 * 2]


def test_a_row_does_not_depend_on_the_rows_beside_it():
    model = tiny_model()
    three, one = write(model, PROMPT, 40, num_samples=3, seed=5), write(model, PROMPT, 40, seed=5)
    assert three[:1] == one
    assert len(set(map(tuple, three))) == 3


def test_a_longer_text_begins_with_the_shorter_one():
    model = tiny_model()
    assert write(model, PROMPT, 300)[0][:20] == write(model, PROMPT, 20)[0]


def test_the_seed_decides_the_text():
    model = tiny_model()
    texts = [write(model, PROMPT, 30, seed=seed) for seed in (0, 1, 0, 2**64 - 1)]
    assert texts[0] == texts[2] != texts[1] != texts[3]


def test_greedy_decoding_takes_the_arg_max_and_ignores_the_seed():
    model = tiny_model()
    [tokens] = write(model, PROMPT, 11, sampling=SamplingConfig(0), seed=1)
    with torch.no_grad():
        best = model(torch.tensor([PROMPT + tokens]))[0].argmax(-1).tolist()
    assert tokens == best[len(PROMPT) - 1 : -1]
    assert [tokens] == write(model, PROMPT, 11, sampling=SamplingConfig(0), seed=2)


def test_top_k_of_one_is_greedy():
    model = tiny_model()
    assert write(model, PROMPT, 30, sampling=SamplingConfig(2.0, top_k=1)) == write(
        model, PROMPT, 30, sampling=SamplingConfig(0)
    )


def test_training_mode_dropout_and_global_random_state_are_left_as_they_were():
    model = tiny_model(dropout=0.5)
    expected = write(model, PROMPT, 20)
    model.train()
    model.get_submodule("final_norm").eval()  # a part that someone froze stays frozen
    before = [module.training for module in model.modules()]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
    assert write(model, PROMPT, 20) == expected
    for _ in islice(generate_tokens(TorchEngine(model), PROMPT, max_new_tokens=20), 3):  # also when left half-way
        assert [module.training for module in model.modules()] == before
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert [module.training for module in model.modules()] == before
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], numpy_state)


def test_training_mode_is_restored_after_an_error():
    model = tiny_model().train()
    with pytest.raises(RuntimeError), evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError
    assert all(module.training for module in model.modules())


def test_max_new_tokens_of_zero_gives_no_tokens():
    assert list(generate_tokens(TorchEngine(tiny_model()), PROMPT, max_new_tokens=0)) == []


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("max_new_tokens", {"max_new_tokens": -1}),
        ("max_new_tokens", {"max_new_tokens": 2.0}),
        ("num_samples", {"num_samples": 0}),
        ("num_samples", {"num_samples": True}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": 2**64}),
        ("prompt", {"prompt": []}),
        ("token", {"prompt": [11]}),
        ("token", {"prompt": [-1]}),
    ],
)
def test_an_impossible_request_fails_at_the_call(name: str, options: dict):
    with pytest.raises(ConfigError, match=f"{name}="):
        generate_tokens(TorchEngine(tiny_model()), **{"prompt": PROMPT, "max_new_tokens": 1} | options)


def test_a_model_whose_scores_are_not_numbers_is_an_error():
    model = tiny_model()
    model.get_parameter("final_norm.weight").data.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="finite"):
        write(model, PROMPT, 1)
