"""All engines compute the model, and what a request gets does not depend on other requests."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from near_ties import assert_same_text, is_near_tie
from reference_sampling import adjust, choose_tokens

from quill.checkpoints.run_folder import load_checkpoint
from quill.data.dataset import Dataset, prepare_dataset
from quill.engines import make as engine_module
from quill.engines.base import Engine, PrefillInput
from quill.engines.cuda_engine import CudaEngine
from quill.engines.make import arrays_of, make_engine
from quill.engines.numba_engine import NumbaEngine
from quill.engines.random_numbers import uniforms
from quill.engines.request import BusyError, Request, SamplingConfig, Token
from quill.errors import ConfigError
from quill.evaluation.split_loss import evaluate_split
from quill.generation.batch_generator import BatchGenerator
from quill.model.build import Model, build_model
from quill.model.config import GPTConfig, ModelConfig, ModernConfig
from quill.training.config import TrainConfig
from quill.training.context import resolve_context
from quill.training.loop import train

SHAPES: dict[str, ModelConfig] = {
    "classic": GPTConfig(vocab_size=65, block_size=48, n_layer=2, n_head=4, n_embd=64),
    "every bias, ReLU, a head of its own": GPTConfig(
        vocab_size=300, block_size=70, n_layer=2, n_head=2, n_embd=20, bias=True, activation="relu", tie_weights=False
    ),
    "wide heads": GPTConfig(vocab_size=11, block_size=130, n_layer=1, n_head=1, n_embd=80),
    "modern": ModernConfig(vocab_size=65, block_size=48, n_layer=2, n_head=4, n_embd=64),
    "shared keys, no n-grams, no cap": ModernConfig(
        vocab_size=30, block_size=33, n_layer=3, n_head=6, n_embd=36, n_kv_head=2, ngram=1, logit_softcap=0.0
    ),
    "a short window": ModernConfig(vocab_size=65, block_size=24, n_layer=2, n_head=4, n_embd=64, ngram_rows=97),
    "a crowded table": ModernConfig(vocab_size=65, block_size=150, n_layer=1, n_head=2, n_embd=40, ngram_rows=7),
}
ENGINES = [("torch", None), ("numba", None), ("numba", "int8"), ("cuda", None)]


def engine_of(model: Model, name: str, **options: Any) -> Engine:
    """Any engine on a CPU, where the one for GPUs does its steps one operation after another."""
    options = {k: v for k, v in options.items() if k != "quantization"} if name == "cuda" else options
    return CudaEngine(model, **options) if name == "cuda" else make_engine(model, name, **options)


def random_model(config: ModelConfig) -> Model:
    """A model whose every weight matters, also those that start at 0 or 1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(config).eval()
        for name, parameter in model.named_parameters():
            parameter.data.normal_(mean=1.0 if "norm.weight" in name else 0.0, std=0.2)
    return model


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare_dataset("pydoc", data_dir=tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module", params=["classic", "modern"])
def trained(request: pytest.FixtureRequest, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model that has learned something, in a second or two."""
    kind = GPTConfig if request.param == "classic" else ModernConfig
    shape = kind(vocab_size=dataset.tokenizer.vocab_size, block_size=64, n_layer=2, n_head=4, n_embd=64, dropout=0.0)
    out_dir = tmp_path_factory.mktemp(request.param)
    recipe = TrainConfig(max_iters=100, batch_size=8, learning_rate=5e-3, eval_interval=100, eval_iters=2)
    train(shape, recipe, resolve_context(out_dir), dataset)
    return load_checkpoint(out_dir).model


@pytest.mark.parametrize("shape", SHAPES)
def test_the_compiled_step_gives_the_logits_of_the_model(shape: str) -> None:
    config = SHAPES[shape]
    model, rng = random_model(config), np.random.default_rng(0)
    tokens = rng.integers(config.vocab_size, size=config.block_size).tolist()
    with torch.no_grad():
        expected_TV = model(torch.tensor([tokens]))[0].numpy()
    np.testing.assert_allclose(make_engine(model, "numba").logits(tokens), expected_TV, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["torch", "numba", "cuda"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_engine_gives_the_logits_of_the_model(shape: str, name: str) -> None:
    config = SHAPES[shape]
    model, prompt = random_model(config), (1, 2, 3)
    engine, steps = engine_of(model, name, slots=2), config.block_size - len(prompt)
    engine.assign(1, Request(prompt, 2 * steps, SamplingConfig(1.2), seed=3))
    first = engine.prefill([PrefillInput(1, prompt, 0)])
    written = engine.decode([1], steps)
    tokens = [*prompt, int(first.tokens_TB[0, 0]), *written.tokens_TB[:-1, 0].tolist()]
    with torch.no_grad():
        expected_TV = model(torch.tensor([tokens]))[0, len(prompt) - 1 :].numpy()
    scores_TV = np.concatenate([first.logits_TBV[:, 0], written.logits_TBV[:, 0]])
    np.testing.assert_allclose(scores_TV, expected_TV, rtol=0, atol=1e-4)


@pytest.mark.parametrize("count", [150, pytest.param(1000, marks=pytest.mark.long)])  # the context is 64 tokens
def test_every_engine_generates_the_same_tokens_with_trained_weights(
    count: int, trained: Model, dataset: Dataset
) -> None:
    prompt, how, V = dataset.val[:20].tolist(), SamplingConfig(0.9, top_k=20), trained.config.vocab_size
    request = Request(tuple(prompt), count, how, seed=5, logprobs=V)
    reference, *others = (tokens_of(engine_of(trained, name), request) for name in ("torch", "numba", "cuda"))
    for other in others:
        assert_same_text(request, reference, other)


def test_the_comparison_of_texts_accepts_only_differences_that_rounding_explains() -> None:
    def token(number: int, *logits: float) -> Token:
        return Token(number, None, tuple(enumerate(logits)))

    greedy = Request((0,), 1, SamplingConfig(0))
    assert_same_text(greedy, [token(0, 1.0, 1.00001)], [token(1, 1.0, 1.00001)])
    with pytest.raises(AssertionError):
        assert_same_text(greedy, [token(0, 1.0, 1.1)], [token(1, 1.0, 1.1)])
    drawn, u = Request((0,), 1), float(uniforms(0, [0], 0, 1)[0, 0])
    for far, near in ((0.01, False), (0.00001, True)):
        logits = [np.log(u + far), np.log(1 - u - far)]
        assert is_near_tie(drawn, 0, token(0, *logits)) is near
    assert is_near_tie(Request((0,), 1, SamplingConfig(1.0, top_k=1)), 0, token(0, 1.0, 1.00001, 0.0))
    assert not is_near_tie(Request((0,), 1, SamplingConfig(1.0, top_k=1)), 0, token(0, 1.0, 1.1, 0.0))


def test_int8_costs_less_than_half_a_percent_of_loss(trained: Model, dataset: Dataset) -> None:
    engine = make_engine(trained, "numba", quantization="int8")

    def forward(tokens_BT: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.from_numpy(engine.logits(tokens_T.tolist())) for tokens_T in tokens_BT])

    exact = evaluate_split(trained, dataset.val, dataset.tokenizer)
    rounded = evaluate_split(trained, dataset.val, dataset.tokenizer, forward=forward)
    assert exact.loss < 0.7 * np.log(dataset.tokenizer.vocab_size)  # it has learned
    assert rounded.loss < 1.005 * exact.loss and rounded.tokens == exact.tokens


def test_int8_weights_take_little_more_than_a_quarter_of_the_memory() -> None:
    model = random_model(GPTConfig(vocab_size=65))
    assert isinstance(engine := make_engine(model, "numba", quantization="int8"), NumbaEngine)
    assert engine.weight_bytes <= 0.27 * 4 * model.count_parameters()


def requests_of(vocab_size: int, count: int, rng: random.Random) -> list[Request]:
    """Requests of all kinds; many begin alike, some with the whole of another."""
    beginning = [rng.randrange(vocab_size) for _ in range(60)]
    requests = []
    for row in range(count):
        shared = rng.choice([0, 10, 33, 60])
        own = [rng.randrange(vocab_size) for _ in range(rng.randrange(1, 40))]
        sampling = SamplingConfig(
            temperature=rng.choice([0.0, 0.7, 1.0, 1.5]),
            top_k=rng.choice([None, 1, 5]),
            top_p=rng.choice([None, 0.8]),
            min_p=rng.choice([None, 0.05]),
            presence_penalty=rng.choice([0.0, 0.5]),
            frequency_penalty=rng.choice([0.0, -0.2]),
            repetition_penalty=rng.choice([1.0, 1.2]),
        )
        bias = rng.choice([{}, {3: 2.0, 5: -100.0}])
        prompt = tuple(beginning[:shared] + own[: rng.choice([1, 40])])
        requests.append(Request(prompt, rng.randrange(1, 40), sampling, rng.randrange(9), row, bias, 3))
    return requests


def tokens_of(engine: Engine, request: Request) -> list[Token]:
    return [event.token for _, event in BatchGenerator(engine).follow([request]) if event.token]


# The core suite has each shape with the compiled step in float32, two in int8, and one with each of the slower engines.
BESIDE_OTHERS = ["classic", "shared keys, no n-grams, no cap", "a short window", "a crowded table"]
IN_CORE = {
    *(("numba", None, shape) for shape in BESIDE_OTHERS),
    ("numba", "int8", "classic"),
    ("numba", "int8", "a short window"),
    ("torch", None, "a short window"),
    ("cuda", None, "classic"),
}
CASES = [
    pytest.param(name, quantization, shape, marks=[] if (name, quantization, shape) in IN_CORE else [pytest.mark.long])
    for name, quantization in ENGINES
    for shape in BESIDE_OTHERS
]


@pytest.mark.parametrize(("name", "quantization", "shape"), CASES)
def test_a_request_gets_the_same_bytes_alone_and_among_others(name: str, quantization: str | None, shape: str) -> None:
    config, rng = SHAPES[shape], random.Random(1)
    model = random_model(config)
    requests = requests_of(min(config.vocab_size, 30), 33, rng)
    # The engine for GPUs always computes all its slots, so a request alone is the only one in as many.
    slots = 9 if name == "cuda" else 1
    alone = [tokens_of(engine_of(model, name, quantization=quantization, slots=slots), request) for request in requests]
    batch = BatchGenerator(engine_of(model, name, quantization=quantization, slots=9))
    coming, written = list(enumerate(requests)), {}
    going: dict[int, int] = {}
    cancelled = set()
    while coming or batch.busy:
        for _ in range(rng.randrange(5)):  # some join, and now and then one is dropped
            if coming:
                index, request = coming.pop(0)
                going[batch.add(request)] = index
                written[index] = []
        if rng.random() < 0.2 and len(going) > 3:
            number = rng.choice(list(going))
            cancelled.add(going[number])
            batch.cancel(number)
        for event in batch.step():
            if event.token:
                written[going[event.request_id]].append(event.token)
    assert 3 < len(cancelled) < 30
    for index, tokens in enumerate(alone):
        if index in cancelled:
            assert written[index] == tokens[: len(written[index])]
        else:
            assert len(tokens) == requests[index].max_new_tokens and written[index] == tokens


@pytest.mark.parametrize(  # within the context, and past it
    ("length", "threads"), [(40, 2), (40, 3), (200, 2), pytest.param(200, 3, marks=pytest.mark.long)]
)
def test_the_number_of_threads_changes_no_bit(threads: int, length: int) -> None:
    model = random_model(SHAPES["modern"])
    request = Request((1, 2, 3), length, logprobs=2)
    expected = tokens_of(make_engine(model, "numba"), request)
    for quantization in (None, "int8"):
        engines = [
            NumbaEngine(model.config, arrays_of(model), quantization=quantization, threads=n) for n in (1, threads)
        ]
        one, other = (tokens_of(engine, request) for engine in engines)
        assert one == other and (quantization or one == expected)


def test_a_shared_prefix_is_read_once() -> None:
    model, read = random_model(SHAPES["a crowded table"]), []
    engine = NumbaEngine(model.config, arrays_of(model), slots=3, on_pass=read.append)
    batch, beginning = BatchGenerator(engine), tuple(range(60))
    for last in (1, 2, 3):
        for _ in batch.follow([Request((*beginning, last), 1)]):
            pass
    assert read == [61, 1, 1]  # the slot that was released still has the prefix
    read.clear()
    assert len(list(batch.follow([Request((*beginning, 4), 1, row=row) for row in range(3)]))) == 3
    assert read == [1, 1, 1]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_the_compiled_sampler_chooses_what_the_reference_chooses(data: st.DataObject) -> None:
    check_compiled_sampler(data)


@pytest.mark.long
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_compiled_sampler_chooses_what_the_reference_chooses_in_many_examples(data: st.DataObject) -> None:
    check_compiled_sampler(data)


def check_compiled_sampler(data: st.DataObject) -> None:
    from quill.engines.numba_step.workspace import Sampler

    V = data.draw(st.integers(1, 40), "V")
    # Scores on a grid, so that ties are common and rounding cannot make one; uniforms away from where two tokens meet.
    grid = st.integers(-24, 24).map(lambda n: n / 4)
    logits = np.array(data.draw(st.lists(grid, min_size=V, max_size=V), "logits"), np.float32)
    counts = np.array(data.draw(st.lists(st.integers(0, 2), min_size=V, max_size=V), "counts"), np.int32)
    seen = np.array(data.draw(st.lists(st.booleans(), min_size=V, max_size=V), "seen"))
    how = SamplingConfig(
        temperature=data.draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])),
        top_k=data.draw(st.none() | st.integers(1, 50)),
        top_p=data.draw(st.none() | st.sampled_from([0.1, 0.513, 0.9, 1.0])),
        min_p=data.draw(st.none() | st.sampled_from([0.0, 0.021, 0.5])),
        presence_penalty=data.draw(st.sampled_from([0.0, 0.5])),
        frequency_penalty=data.draw(st.sampled_from([0.0, 0.25, -0.5])),
        repetition_penalty=data.draw(st.sampled_from([1.0, 2.0])),
    )
    bias = np.zeros(V, np.float32)
    bias[0] = data.draw(st.sampled_from([0.0, 3.0]))
    uniform = (data.draw(st.integers(0, 999)) + 0.5) / 1000
    logits_V, bias_V, seen_V, counts_V = map(torch.from_numpy, (logits, bias, seen, counts))
    adjusted_V = adjust(logits_V, how, bias_V, seen_V, counts_V)
    expected = int(choose_tokens(adjusted_V[None], how, torch.tensor([uniform])))

    def one(value: float, kind: type = np.float32) -> np.ndarray:
        return np.array([value], kind)

    sampler = Sampler(
        temperature_B=one(how.temperature),
        top_k_B=one(min(how.top_k or V, V), np.int64),
        top_p_B=one(1 if how.top_p is None else how.top_p),
        min_p_B=one(np.log(how.min_p) if how.min_p else -np.inf),
        presence_B=one(how.presence_penalty),
        frequency_B=one(how.frequency_penalty),
        repetition_B=one(how.repetition_penalty),
        plain_B=one(False, np.bool_),
        bias_BV=bias[None],
        seen_BV=seen[None],
        counts_BV=counts[None],
    )
    scores, ordered = np.zeros((2, V), np.float32)
    assert compiled_choose()(logits, 0, uniform, sampler, scores, ordered) == expected


@cache
def compiled_choose() -> Callable[..., int]:
    """Return `choose` with the wrapper that lets Python call it."""
    from quill.engines.numba_step.sampling import OPTIONS, choose, njit

    return njit(**OPTIONS | {"no_cpython_wrapper": False})(choose.py_func)


def test_requests_wait_for_a_slot_and_a_full_queue_is_an_error() -> None:
    batch = BatchGenerator(make_engine(random_model(SHAPES["classic"]), "torch", slots=2), max_waiting=3)
    numbers = [batch.add(Request((1,), 3, row=row)) for row in range(3)]
    with pytest.raises(BusyError, match="3 requests are waiting"):
        batch.add(Request((1,), 3))
    assert {event.request_id for event in batch.step()} == set(numbers[:2])
    numbers += [batch.add(Request((1,), 3, row=row)) for row in (3, 4)]
    batch.cancel(numbers[3])  # while it waits
    ended = []
    while batch.busy:
        ended += [event.request_id for event in batch.step() if event.finish_reason == "length"]
    assert ended == [0, 1, 2, 4]


def test_a_deleted_iterator_frees_its_slot() -> None:
    batch = BatchGenerator(make_engine(random_model(SHAPES["classic"]), "torch", slots=1))
    left = batch.follow([Request((1,), 1000)])
    assert len(list(islice(left, 2))) == 2
    del left
    assert not batch.busy and len(list(batch.follow([Request((1,), 3)]))) == 3


def test_several_threads_may_generate_at_once() -> None:
    model = random_model(SHAPES["modern"])
    requests = [Request((1, row), 100, row=row) for row in range(6)]
    expected = [tokens_of(make_engine(model, "numba"), request) for request in requests]
    batch, written = BatchGenerator(make_engine(model, "numba", slots=4)), {}

    def write(row: int) -> None:
        written[row] = [event.token for _, event in batch.follow([requests[row]])]

    threads = [threading.Thread(target=write, args=(row,)) for row in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [written[row] for row in range(6)] == expected


def test_logprobs_are_those_of_the_model_before_any_filter() -> None:
    model = random_model(SHAPES["classic"])
    request = Request((1, 2), 5, SamplingConfig(0.5, top_k=3, presence_penalty=1.0), logprobs=65)
    tokens = tokens_of(make_engine(model, "torch"), request)
    with torch.no_grad():
        logprobs_TV = model(torch.tensor([[1, 2, *(token.token_id for token in tokens)]]))[0].log_softmax(-1)
    for token, logprobs_V in zip(tokens, logprobs_TV[1:], strict=False):
        assert token.logprob == pytest.approx(logprobs_V[token.token_id].item(), abs=1e-5)
        assert sum(np.exp(logprob) for _, logprob in token.top_logprobs) == pytest.approx(1)
        assert token.top_logprobs[0][0] == int(logprobs_V.argmax()) and token.top_logprobs == tuple(
            sorted(token.top_logprobs, key=lambda x: -x[1])
        )


def test_auto_takes_numba_on_a_cpu_and_says_why_if_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    model, said = random_model(SHAPES["classic"]), []
    assert isinstance(make_engine(model), NumbaEngine)
    monkeypatch.setattr(engine_module.importlib.util, "find_spec", lambda _: None)
    assert type(make_engine(model, on_status=said.append)).__name__ == "TorchEngine"
    assert said == ["generating with PyTorch, which is slower: Numba is not installed (pip install numba)"]
    with pytest.raises(ConfigError, match="Numba is not installed"):
        make_engine(model, "numba")
    with pytest.raises(ConfigError, match="quantization='int8' cannot be used: Numba is not installed"):
        make_engine(model, quantization="int8")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("engine", {"name": "cudda"}),
        ("quantization", {"quantization": "int4"}),
        ("quantization", {"name": "torch", "quantization": "int8"}),
    ],
)
def test_an_unknown_engine_or_quantization_is_an_error(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{name}="):
        make_engine(random_model(SHAPES["classic"]), **options)
