"""The engine for GPUs. All tests but the last run on a CPU, where its steps run in eager mode.

That a step can be captured is tested without a GPU too: it reads nothing from the device, and a tape of its operations,
played again without Python, writes the same texts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from quill.engines import cuda_engine, make
from quill.engines.base import Engine, PrefillInput
from quill.engines.cuda_engine import BURST, CudaEngine
from quill.engines.make import make_engine
from quill.engines.request import Request, SamplingConfig, Token
from quill.engines.sampling import ALL_STAGES
from quill.engines.static_model import StaticModel
from quill.engines.torch_engine import TorchEngine
from quill.errors import CheckpointError, ConfigError
from quill.generation.batch_generator import BatchGenerator
from quill.model.build import Model, build_model
from quill.model.config import GPTConfig, ModelConfig, ModernConfig

SHAPES: dict[str, ModelConfig] = {
    "classic": GPTConfig(vocab_size=30, block_size=24, n_layer=2, n_head=2, n_embd=32, bias=True),
    "modern": ModernConfig(vocab_size=30, block_size=24, n_layer=2, n_head=4, n_embd=32, n_kv_head=2, ngram_rows=50),
}


def random_model(config: ModelConfig, seed: int = 0) -> Model:
    """A model whose every weight matters, also those that start at 0 or 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_model(config).eval()
        for name, parameter in model.named_parameters():
            parameter.data.normal_(mean=1.0 if "norm.weight" in name else 0.0, std=0.2)
    return model


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest) -> Model:
    return random_model(SHAPES[request.param])


ALL_SETTINGS = SamplingConfig(0.9, 9, 0.9, 0.01, 0.3, -0.1, 1.2)
REQUESTS = [
    Request((1, 2, 3), 40, SamplingConfig(0.8, top_k=5), seed=1, logprobs=2),
    Request((4,), 25, SamplingConfig(0), logprobs=0),
    Request(tuple(range(30)), 33, ALL_SETTINGS, seed=2, logit_bias={3: 2.0, 5: -100.0}, logprobs=1),
    Request((7, 7), 60, SamplingConfig(1.3, top_p=0.8), seed=3, row=1),
    Request((9, 8, 7, 6), 17, SamplingConfig(), seed=3, row=2),
]


def texts_of(engine: Engine, requests: list[Request] = REQUESTS) -> list[list[Token]]:
    texts: list[list[Token]] = [[] for _ in requests]
    for slot, event in BatchGenerator(engine).follow(requests):
        if event.token:
            texts[slot].append(event.token)
    return texts


def numbers(texts: list[list[Token]]) -> list[list[int]]:
    return [[token.token_id for token in text] for text in texts]


# ── the step ──


def test_each_slot_reads_its_own_sequence_at_its_own_position(model: Model) -> None:
    V, S = model.config.vocab_size, model.config.block_size
    static, tokens_BS = StaticModel(model, 3), torch.arange(3 * S).view(3, S) * 7 % V
    read = [0, 0, 0]
    with torch.no_grad():
        expected_BSV = model(tokens_BS)
        for turn in range(2 * S):
            active = [slot for slot in range(3) if read[slot] < S and turn % (slot + 1) == 0]
            static.cache.active_B.zero_()
            static.cache.active_B[active] = 1
            logits_BV = static(torch.stack([tokens_BS[slot, min(read[slot], S - 1)] for slot in range(3)]))
            for slot in active:
                torch.testing.assert_close(logits_BV[slot], expected_BSV[slot, read[slot]], rtol=0, atol=1e-4)
                read[slot] += 1
    assert read[0] == read[1] == S and 2 < read[2] < S


def test_the_engine_uses_the_present_weights_of_the_model(model: Model) -> None:
    engine, other = CudaEngine(model, slots=2), random_model(model.config, seed=1)
    assert numbers(texts_of(engine)) == numbers(texts_of(TorchEngine(model)))
    before = sum(parameter.numel() for parameter in model.parameters())
    model.load_state_dict(other.state_dict())
    assert numbers(texts_of(engine)) == numbers(texts_of(TorchEngine(other)))
    assert sum(parameter.numel() for parameter in model.parameters()) == before
    model.train()
    texts_of(engine)
    assert all(module.training for module in model.modules())


def test_bursts_of_any_length_generate_the_same_tokens(model: Model) -> None:
    request = Request((1, 2), 20, SamplingConfig(0.8, top_k=5), seed=4)
    written = []
    for bursts in ([BURST + 3], [BURST, 1, 2], [1] * (BURST + 3), [9, 10]):
        engine = CudaEngine(model, slots=3)
        engine.assign(1, request)
        tokens = engine.prefill([PrefillInput(1, request.prompt, 0)]).tokens_TB[:, 0].tolist()
        for steps in bursts:
            one = engine.decode([1], steps)
            assert one.tokens_TB.shape == (steps, 1) and one.logits_TBV.shape == (steps, 1, model.config.vocab_size)
            tokens += one.tokens_TB[:, 0].tolist()
        written.append(tokens)
    assert written[0] == written[1] == written[2] == written[3] == numbers(texts_of(TorchEngine(model), [request]))[0]


def test_a_damaged_model_is_an_error_for_every_kind_of_request(model: Model) -> None:
    model.get_parameter("head.weight").data.fill_(float("nan"))
    for request in REQUESTS:
        with pytest.raises(CheckpointError, match="finite"):
            texts_of(CudaEngine(model), [request])


def test_an_engine_made_in_inference_mode_generates_outside_of_it(model: Model) -> None:
    with torch.inference_mode():
        engine = CudaEngine(model, slots=2)
        within = texts_of(engine)
    assert texts_of(engine) == within


# ── a step can be captured ──

ASKS_THE_DEVICE = {
    *("_local_scalar_dense", "item", "equal", "is_nonzero"),  # a number for Python
    *("nonzero", "masked_select", "unique", "_unique2", "bincount", "resize_", "set_"),  # a shape that depends on data
    *("lift_fresh", "lift_fresh_copy", "scalar_tensor", "_pin_memory"),  # data from Python
}


class NoQuestions(TorchDispatchMode):
    """Forbids whatever would wait for a device, bring data to it, or have a shape that depends on data."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device = device
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ASKS_THE_DEVICE, f"{func} asks the device, or brings data to it"
        if name.startswith(("index", "_index_put")) and name not in ("index_select", "index_copy_", "index_copy"):
            assert all(t.dtype is not torch.bool for t in tree_leaves(args[1]) if isinstance(t, Tensor)), func
        self.operations.append(name)
        output = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, Tensor)]
        assert {tensor.device.type for tensor in tensors} == {self.device}, f"{func} comes from another device"
        return output


def make_ready(engine: CudaEngine) -> CudaEngine:
    """Assign one kind of request to each slot."""
    for slot, request in enumerate(REQUESTS):
        engine.assign(slot, request)
        engine.prefill([PrefillInput(slot, request.prompt[:9], 0)])
    return engine


def every_tensor(engine: CudaEngine) -> dict[str, int]:
    """The addresses of all that outlives a step, by name."""
    twin, addresses = engine.static.twin, {}
    for holder in (
        engine,
        engine.sampler.rules,
        engine.static.cache,
        dict(twin.named_parameters()),
        dict(twin.named_buffers()),
    ):
        fields = holder if isinstance(holder, dict) else vars(holder)
        for name, value in fields.items():
            tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
            addresses |= {f"{type(holder).__name__}.{name}.{i}": t.data_ptr() for i, t in enumerate(tensors)}
    return addresses


@torch.no_grad()
@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_step_never_waits_for_the_device_and_its_tensors_stay_at_their_addresses(model: Model, count: int) -> None:
    engine = make_ready(CudaEngine(model, slots=len(REQUESTS)))
    before = every_tensor(engine)
    assert len(before) > 50
    with NoQuestions() as seen:
        engine.replay(count, ALL_STAGES)()
    assert every_tensor(engine) == before
    assert len(seen.operations) > 30


def test_the_check_for_synchronisation_detects_it() -> None:
    for question in (
        lambda x: x.item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x + torch.tensor([1.0]),
        bool,
    ):
        with pytest.raises(AssertionError, match=r"asks the device|aten"), NoQuestions():
            question(torch.ones(1))


@torch.no_grad()
def test_a_step_runs_on_a_device_that_has_no_data_at_all(model: Model) -> None:
    with torch.device("meta"):
        nowhere = build_model(model.config).eval()
    engine = CudaEngine(nowhere, slots=3)
    assert {t.device.type for t in vars(engine.static.cache).values() if isinstance(t, Tensor)} == {"meta"}
    with NoQuestions("meta"):  # nor does it touch another one
        engine.replay(2, ALL_STAGES)()


class Tape(TorchDispatchMode):
    """What a CUDA graph is, on a CPU: operations and their tensors, to be done again without the Python around them."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, output))
        return output

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, output in self.operations:
                for old, new in zip(tree_leaves(output), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(old, Tensor) and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                        old.copy_(new)


class TapeCapture:
    """A graph capture without a GPU: tapes in place of CUDA graphs."""

    device = torch.device("cpu")

    def __init__(self, error: str = "") -> None:
        self.error, self.tapes = error, 0

    def warm_up(self, run: Callable[[], Any]) -> Any:
        return run()

    def capture(self, run: Callable[[], Any]) -> Callable[[], Any]:
        if self.error:
            raise RuntimeError(self.error)
        tape = Tape()
        with tape:
            run()
        self.tapes += 1
        return tape.replay


def test_a_captured_step_replayed_without_python_gives_the_same_bytes(model: Model) -> None:
    graphs = TapeCapture()
    taped, plain = CudaEngine(model, slots=3, graphs=graphs), CudaEngine(model, slots=3)
    assert texts_of(taped) == texts_of(plain)  # log-probabilities included
    assert graphs.tapes > 5
    captured = graphs.tapes
    assert texts_of(taped) == texts_of(plain) and graphs.tapes == captured  # each is captured once


@torch.no_grad()
def test_capturing_during_generation_advances_no_sequence(model: Model) -> None:
    graphs = TapeCapture()
    engine = make_ready(CudaEngine(model, slots=len(REQUESTS), graphs=graphs))
    engine.decode(range(len(REQUESTS)), 5)
    state = engine.tokens_B, engine.static.cache.positions_B, engine.sampler.rules.counts_BV
    before, tapes = [tensor.clone() for tensor in state], graphs.tapes
    engine.replay(BURST, ALL_STAGES)
    assert graphs.tapes == tapes + 1 and all(map(torch.equal, before, state))


def test_a_failed_capture_gives_one_message_and_the_same_text(model: Model) -> None:
    said: list[str] = []
    graphs = TapeCapture(error="operation not permitted when stream is capturing\nmore")
    engine = CudaEngine(model, slots=3, graphs=graphs, on_status=said.append)
    assert texts_of(engine) == texts_of(CudaEngine(model, slots=3))
    assert len(said) == 1 and "generating without CUDA graphs" in said[0] and "\n" not in said[0]


def test_a_failed_compilation_gives_one_message_and_the_same_text(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_: Any) -> None:
        raise RuntimeError("no compiler here")

    said: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda *_, **__: no_compiler)
    engine = CudaEngine(model, slots=3, compiled=True, on_status=said.append)
    assert texts_of(engine) == texts_of(CudaEngine(model, slots=3))
    assert said == ["generating without torch.compile, which failed (no compiler here)"]


def test_the_whole_step_compiles_as_one_graph(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda step, options, **how: compile_(step, backend="eager", **how))
    engine = CudaEngine(model, slots=2, compiled=True)  # fullgraph: what cannot be traced is an error
    requests = REQUESTS[:2]
    assert numbers(texts_of(engine, requests)) == numbers(texts_of(TorchEngine(model), requests))
    assert engine.compiled


# ── who takes it ──


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_model_on_a_cuda_device_gets_this_engine(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(cuda_engine, "CudaEngine", lambda *_, slots, **__: taken.append(slots) or Mock())
    monkeypatch.setattr(make, "difference", lambda *_: "")
    weight: Any = type("Weight", (), {"device": torch.device(device)})
    elsewhere: Any = type("Elsewhere", (), {"token_embedding": type("Embedding", (), {"weight": weight})})
    make_engine(elsewhere, slots=3)
    make_engine(elsewhere, "cuda", slots=4)
    assert taken == [3, 4]
    with pytest.raises(ConfigError, match="quantization='int8' cannot be used: the cuda engine does not support it"):
        make_engine(elsewhere, "cuda", quantization="int8")


def test_a_model_on_another_device_is_refused_with_advice(model: Model) -> None:
    with pytest.raises(ConfigError, match=r"engine='cuda' cannot be used: the model is on 'cpu'.*use device='cuda'"):
        make_engine(model, "cuda")


# ── where there is a GPU ──


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device on this machine")
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu_captured_bursts_give_the_logits_of_the_model(model: Model, compiled: bool) -> None:
    model, said = model.to("cuda"), []
    engine = CudaEngine(model, slots=len(REQUESTS), compiled=compiled, on_status=said.append)
    texts = texts_of(engine)
    assert said == []  # nothing failed
    assert compiled or texts == texts_of(CudaEngine(model, slots=len(REQUESTS), graphs=None))  # the same kernels
    for request, text in zip(REQUESTS, texts, strict=True):
        assert texts_of(engine, [request]) == [text]  # alone as among others
    for slot, request in enumerate(REQUESTS):
        engine.assign(slot, request)
        start = request.prompt[:4]
        tokens = [*start, int(engine.prefill([PrefillInput(slot, start, 0)]).tokens_TB[0, 0])]
        written = engine.decode([slot], BURST + 2)
        tokens += written.tokens_TB[:-1, 0].tolist()
        with torch.no_grad():
            expected_TV = model(torch.tensor([tokens], device="cuda"))[0, len(start) :].cpu()
        torch.testing.assert_close(torch.from_numpy(written.logits_TBV[:, 0]), expected_TV, rtol=0, atol=1e-4)
