"""fastrnn.torch's layers and cells against torch.nn's own: values, gradients, parameters, errors."""

import copy
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence  # noqa: E402

import fastrnn.torch as ft  # noqa: E402
from support import run_python  # noqa: E402
from torch_support import B, H, I, T, assert_alike, error_of, flat, pair, results, states_of  # noqa: E402

# PyTorch's notes on its own slower path.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

LAYERS = ("LSTM", "GRU", "RNN")

OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"batch_first": True},
    {"bidirectional": True},
    {"num_layers": 3},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"num_layers": 2, "dropout": 0.4},
    {"num_layers": 3, "dropout": 0.5, "bidirectional": True, "batch_first": True},
    {"num_layers": 2, "dropout": 1.0},
]
CASES = [(kind, options) for kind in LAYERS for options in OPTIONS]
CASES += [("RNN", {"nonlinearity": "relu", "num_layers": 2}), ("LSTM", {"proj_size": 3})]
CASES += [("LSTM", {"proj_size": 3, "num_layers": 2, "bidirectional": True, "bias": False, "batch_first": True})]
every_case = pytest.mark.parametrize(("kind", "options"), CASES, ids=str)


@every_case
class TestSameAsTorch:
    def test_parameters(self, kind: str, options: dict[str, Any]) -> None:
        theirs, ours = pair(kind, **options)
        assert repr(ours) == repr(theirs)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
            assert torch.equal(a, b)
        assert ours.all_weights[0][0] is ours.weight_ih_l0
        ours.load_state_dict(theirs.state_dict())

    @pytest.mark.parametrize("with_state", [False, True])
    @pytest.mark.parametrize("training", [False, True])
    def test_padded(self, kind: str, options: dict[str, Any], with_state: bool, training: bool) -> None:
        theirs, ours = (m.train(training) for m in pair(kind, **options))
        x = torch.randn(T, B, I).transpose(0, 1).contiguous() if ours.batch_first else torch.randn(T, B, I)
        hx = [states_of(ours, B)] if with_state else []
        assert_alike(results(ours, x, *hx), results(theirs, x, *hx))
        with torch.no_grad():
            torch.manual_seed(5)
            mine = flat(ours(x, *hx))
            torch.manual_seed(5)
            assert_alike(mine, flat(theirs(x, *hx)))

    @pytest.mark.parametrize("sort", [False, True])
    def test_packed(self, kind: str, options: dict[str, Any], sort: bool) -> None:
        theirs, ours = pair(kind, **options)
        lengths = [6, 4, 4, 1] if sort else [4, 1, 6, 4]
        packed = pack_sequence([torch.randn(n, I) for n in lengths], enforce_sorted=sort)
        for hx in ([], [states_of(ours, B)]):
            assert_alike(results(ours, packed, *hx), results(theirs, packed, *hx))
        with torch.no_grad():
            torch.manual_seed(5)
            y, _ = ours(packed)
            torch.manual_seed(5)
            wanted, _ = theirs(packed)
        assert torch.equal(y.batch_sizes, wanted.batch_sizes)
        assert_alike([pad_packed_sequence(y)[0]], [pad_packed_sequence(wanted)[0]])

    def test_unbatched(self, kind: str, options: dict[str, Any]) -> None:
        theirs, ours = pair(kind, **options)
        x, hx = torch.randn(T, I), states_of(ours, 1)
        hx = tuple(s[:, 0] for s in hx) if isinstance(hx, tuple) else hx[:, 0]
        assert_alike(results(ours, x), results(theirs, x))
        assert_alike(results(ours, x, hx), results(theirs, x, hx))

    def test_no_sequences(self, kind: str, options: dict[str, Any]) -> None:
        theirs, ours = pair(kind, **options)
        x = torch.randn(0, T, I) if ours.batch_first else torch.randn(T, 0, I)
        assert_alike(results(ours, x), results(theirs, x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_other_dtypes(kind: str, dtype: Any) -> None:
    theirs, ours = (m.to(dtype) for m in pair(kind, num_layers=2, bidirectional=True))
    x, hx = torch.randn(T, B, I, dtype=dtype), states_of(ours, B, dtype)
    tolerance = {torch.float64: 1e-12, torch.bfloat16: 6e-2, torch.float16: 8e-3}[dtype]
    assert_alike(results(ours, x, hx), results(theirs, x, hx), tolerance)


@pytest.mark.parametrize("kind", LAYERS)
class TestLengthsAndResets:
    @pytest.mark.parametrize("batch_first", [False, True])
    def test_lengths_are_what_packing_does(self, kind: str, batch_first: bool) -> None:
        _, ours = pair(kind, num_layers=2, bidirectional=True, batch_first=batch_first)
        lengths = torch.tensor([3, 6, 1, 5])
        x = torch.randn(B, T, I) if batch_first else torch.randn(T, B, I)
        hx = states_of(ours, B)
        packed = pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=False)
        y, state = ours(packed, hx)
        padded, _ = pad_packed_sequence(y, batch_first=batch_first)
        for given in (lengths, lengths.tolist(), lengths.numpy(), lengths.to(torch.int32)):
            assert_alike(flat(ours(x, hx, lengths=given)), [padded, *flat(state)])

    @pytest.mark.parametrize("batch_first", [False, True])
    def test_resets_are_the_loop_that_masks_the_state(self, kind: str, batch_first: bool) -> None:
        theirs, ours = pair(kind, num_layers=2, batch_first=batch_first)
        done = torch.rand(T, B) < 0.4
        done[0, 0] = True
        x = torch.randn(T, B, I)
        hx = states_of(ours, B)

        def loop(x: Any, hx: Any) -> Any:
            rows = []
            x = x.transpose(0, 1) if batch_first else x
            for t in range(T):
                keep = (~done[t])[None, :, None]
                hx = tuple(s * keep for s in hx) if isinstance(hx, tuple) else hx * keep
                row = x[t : t + 1]
                y, hx = theirs(row.transpose(0, 1) if batch_first else row, hx)
                rows.append(y)
            return torch.cat(rows, 1 if batch_first else 0), hx

        loop.parameters = theirs.parameters  # type: ignore[attr-defined]

        def masked(x: Any, hx: Any) -> Any:
            return ours(x, hx, reset=done.t() if batch_first else done)

        masked.parameters = ours.parameters  # type: ignore[attr-defined]
        x = x.transpose(0, 1) if batch_first else x
        assert_alike(results(masked, x, hx), results(loop, x, hx))

    def test_unbatched(self, kind: str) -> None:
        _, ours = pair(kind)
        x, done = torch.randn(T, I), torch.tensor([False, True, False, False, True, False])
        wanted, _ = ours(x[:, None], reset=done[:, None], lengths=[5])
        assert torch.equal(ours(x, reset=done, lengths=5)[0], wanted[:, 0])

    @pytest.mark.parametrize(
        ("given", "error", "words"),
        [
            ({"lengths": [1, 2]}, ValueError, r"lengths of shape \(2,\) but must have \(4,\)"),
            ({"lengths": [1, 2, 3, 7]}, ValueError, r"\[1, 2, 3, 7\] but they must lie in 0..6"),
            ({"lengths": [1, 2, 3, -1]}, ValueError, "must lie in 0..6"),
            ({"lengths": [1.0, 2, 3, 4]}, TypeError, "they must be integers"),
            ({"reset": torch.zeros(T, B)}, TypeError, "must be torch.bool"),
            ({"reset": torch.zeros(B, T, dtype=torch.bool)}, ValueError, r"shape \(4, 6\) but it must have \(6, 4\)"),
        ],
        ids=str,
    )
    def test_bad_ones(self, kind: str, given: dict[str, Any], error: type[Exception], words: str) -> None:
        _, ours = pair(kind)
        with pytest.raises(error, match=words):
            ours(torch.randn(T, B, I), **given)

    def test_arrays_that_change_before_backward(self, kind: str) -> None:
        """As those of a rollout buffer do."""
        _, ours = pair(kind)
        x = torch.randn(T, B, I)
        done, lengths = np.zeros((T, B), bool), np.array([6, 2, 3, 1])
        done[3] = True
        gradients = []
        for change in (False, True):
            y, _ = ours(x, reset=done, lengths=lengths)
            if change:
                done[:], lengths[:] = False, 6
            gradients.append(torch.autograd.grad(y.sum(), ours.weight_hh_l0)[0])
        assert torch.equal(*gradients)

    def test_no_sequences(self, kind: str) -> None:
        _, ours = pair(kind)
        y, state = ours(torch.randn(T, 0, I), lengths=[], reset=np.zeros((T, 0), bool))
        assert y.shape == (T, 0, H)
        assert all(s.requires_grad for s in flat(state))

    def test_beside_a_packed_sequence(self, kind: str) -> None:
        _, ours = pair(kind)
        packed = pack_sequence([torch.randn(3, I)])
        with pytest.raises(ValueError, match="got a PackedSequence and lengths or reset"):
            ours(packed, lengths=[3])


def bad_state(layer: Any, shape: tuple[int, ...]) -> Any:
    h = torch.zeros(shape)
    return (h, h) if layer.mode == "LSTM" else h


BAD_CALLS: dict[str, Callable[[Any], Any]] = {
    "input of 1 dimension": lambda layer: layer(torch.zeros(I)),
    "input of 4 dimensions": lambda layer: layer(torch.zeros(1, 1, 1, I)),
    "input size": lambda layer: layer(torch.zeros(T, B, I + 1)),
    "dtype": lambda layer: layer(torch.zeros(T, B, I, dtype=torch.float64)),
    "no time steps": lambda layer: layer(torch.zeros(0, B, I)),
    "batch of the state": lambda layer: layer(torch.zeros(T, B, I), bad_state(layer, (1, B + 1, H))),
    "size of the state": lambda layer: layer(torch.zeros(T, B, I), bad_state(layer, (1, B, H + 1))),
    "rows of the state": lambda layer: layer(torch.zeros(T, B, I), bad_state(layer, (2, B, H))),
    "dimensions of the state": lambda layer: layer(torch.zeros(T, B, I), bad_state(layer, (B, H))),
    "unbatched with a batch of states": lambda layer: layer(torch.zeros(T, I), bad_state(layer, (1, 1, H))),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", BAD_CALLS)
def test_errors_are_those_of_torch(kind: str, name: str) -> None:
    theirs, ours = pair(kind)
    assert error_of(BAD_CALLS[name], ours) == error_of(BAD_CALLS[name], theirs)


@pytest.mark.parametrize("kind", LAYERS)
def test_packed_of_another_size(kind: str) -> None:
    """An LSTM of torch.nn does not look."""
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size. Expected 5, got 6"):
        pair(kind)[1](pack_sequence([torch.zeros(T, I + 1)]))


@pytest.mark.parametrize(
    ("kind", "arguments", "options"),
    [
        ("LSTM", (I, 0), {}),
        ("LSTM", (I, H), {"proj_size": H}),
        ("LSTM", (I, H), {"dropout": 2.0}),
        ("LSTM", (I, 2.0), {}),
        ("GRU", (I, H), {"proj_size": 2}),
        ("GRU", (0, H), {}),
        ("RNN", (I, H), {"proj_size": 2}),
        ("RNN", (I, H, 1, "sin"), {}),
        ("RNN", (I, H), {"nonlinearity": "sin"}),
        ("RNN", (I, H, 0), {}),
    ],
    ids=str,
)
def test_bad_options(kind: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    errors = [error_of(lambda k: k(*arguments, **options), getattr(module, kind)) for module in (ft, nn)]
    assert errors[0] == errors[1]


def test_positional_nonlinearity() -> None:
    assert ft.RNN(I, H, 1, "relu").mode == nn.RNN(I, H, 1, "relu").mode == "RNN_RELU"


def test_an_lstm_has_two_states() -> None:
    theirs, ours = pair("LSTM")
    for count in (1, 3):
        states = count * (torch.zeros(1, B, H),)
        with pytest.raises(RuntimeError, match="lstm expects two hidden states"):
            ours(torch.zeros(T, B, I), states)
    assert error_of(lambda layer: layer(torch.zeros(T, B, I), 3 * (torch.zeros(1, B, H),)), ours) == error_of(
        lambda layer: layer(torch.zeros(T, B, I), 3 * (torch.zeros(1, B, H),)), theirs
    )


def test_dropout_of_everything_draws_nothing() -> None:
    """As in torch.nn, so that what is drawn afterwards is the same."""
    drawn = []
    for layer in pair("GRU", num_layers=2, dropout=1.0):
        torch.manual_seed(0)
        layer(torch.zeros(T, B, I))
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("kind", LAYERS)
class TestBehaviour:
    def test_inputs_in_any_layout(self, kind: str) -> None:
        theirs, ours = pair(kind)
        for x in (
            torch.randn(I, B, T).permute(2, 1, 0),
            torch.randn(T, B, 2 * I)[..., ::2],
            torch.randn(T, 1, I).expand(T, B, I),
            torch.randn(B, T, I).transpose(0, 1),
        ):
            assert_alike(results(ours, x), results(theirs, x))

    def test_gradients_in_any_layout(self, kind: str) -> None:
        theirs, ours = pair(kind)
        x = torch.randn(T, B, I)
        ours(x)[0].sum().backward()
        theirs(x)[0].sum().backward()
        assert_alike([p.grad for p in ours.parameters()], [p.grad for p in theirs.parameters()])

    def test_only_some_gradients(self, kind: str) -> None:
        theirs, ours = pair(kind)
        for layer in (theirs, ours):
            layer.weight_hh_l0.requires_grad_(False)
            y, _ = layer(torch.ones(T, B, I))
            y[-1].square().sum().backward()
            assert layer.weight_hh_l0.grad is None
        assert_alike([ours.weight_ih_l0.grad, ours.bias_hh_l0.grad], [theirs.weight_ih_l0.grad, theirs.bias_hh_l0.grad])

    def test_results_do_not_share_memory_with_later_ones(self, kind: str) -> None:
        _, ours = pair(kind)
        x = torch.randn(T, B, I)
        with torch.no_grad():
            first = flat(ours(x))
            kept = [t.clone() for t in first]
            flat(ours(-x))
        assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))

    def test_changed_parameters_are_seen(self, kind: str) -> None:
        theirs, ours = pair(kind)
        x = torch.randn(T, B, I)
        with torch.no_grad():
            ours(x)
            for layer in (theirs, ours):
                layer.weight_hh_l0.mul_(2)
                layer.weight_ih_l0.data = layer.weight_ih_l0.data * 0.5
            assert_alike(flat(ours(x)), flat(theirs(x)))

    def test_the_output_may_be_written_to(self, kind: str) -> None:
        _, ours = pair(kind, num_layers=2)
        x = torch.randn(T, B, H)
        gradients = []
        for in_place in (False, True):
            y, _ = ours(x[..., :I])
            y = torch.relu_(y.add_(x)) if in_place else torch.relu(y + x)
            gradients.append(torch.autograd.grad(y.sum(), list(ours.parameters())))
        for a, b in zip(*gradients, strict=True):
            assert torch.equal(a, b)

    def test_a_write_between_forward_and_backward_is_refused(self, kind: str) -> None:
        _, ours = pair(kind)
        y, _ = ours(torch.randn(T, B, I))
        with torch.no_grad():
            ours.weight_hh_l0.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()

    def test_copies(self, kind: str) -> None:
        _, ours = pair(kind, num_layers=2)
        x = torch.randn(T, B, I)
        wanted = ours(x)[0]
        for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            assert type(other) is type(ours)
            assert torch.equal(other(x)[0], wanted)

    def test_other_default_devices(self, kind: str) -> None:
        _, ours = pair(kind, num_layers=2, dropout=0.5)
        x = torch.randn(T, B, I)
        given = pack_sequence([x[:, 0], x[:2, 1]])
        with torch.device("meta"):
            y, _ = ours(x, lengths=[6, 2, 3, 1], reset=np.zeros((T, B), bool))
            y.sum().backward()
            packed, _ = ours(given)
        assert y.device == packed.data.device == ours.weight_hh_l0.grad.device == x.device

    def test_tensors_at_different_devices(self, kind: str) -> None:
        for options in ({"num_layers": 2}, {"num_layers": 1}):
            layer = getattr(ft, kind)(I, H, **options)
            layer.weight_hh_l0 = nn.Parameter(layer.weight_hh_l0.to("meta"))
            with pytest.raises(
                RuntimeError, match="not at the same device, found input tensor at cpu and another at meta"
            ):
                layer(torch.randn(T, B, I))
        with pytest.raises(RuntimeError, match="not at the same device"):
            getattr(ft, f"{kind}Cell")(I, H, device="meta")(torch.randn(B, I))

    def test_the_meta_device(self, kind: str) -> None:
        layer = getattr(ft, kind)(I, H, device="meta")
        y, _ = layer(torch.empty(T, B, I, device="meta"))
        assert y.shape == (T, B, H)
        assert y.device.type == "meta"


def test_after_a_fork() -> None:
    """Both sides have threads of their own, which a child does not inherit."""
    code = """
        import os, torch, fastrnn.torch
        layer = fastrnn.torch.LSTM(16, 64)
        x = torch.randn(50, 32, 16)
        with torch.no_grad():
            wanted = layer(x)[0]
            pid = os.fork()
            if pid == 0:
                torch.set_num_threads(1)  # PyTorch's own pool does not survive
                os._exit(0 if torch.equal(layer(x)[0], wanted) else 3)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore::DeprecationWarning"}  # newer Pythons warn of forks beside threads
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=quiet)
    assert done.stdout == "0\n", done.stderr


PEAK = """
import resource, sys, torch, fastrnn.torch as ft
from torch.nn.utils.rnn import PackedSequence

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

torch.manual_seed(0)
layer = ft.{kind}(128, 128, 2, bidirectional=True, dropout=0.5)
sizes = torch.tensor([401] * 3 + [1] * 5997)
x = torch.randn(7200, 128)
with torch.inference_mode():
    layer(PackedSequence(x[:20], torch.tensor([4] * 5)))
small = layer(PackedSequence(x[:20], torch.tensor([4] * 5)))[0].data.sum().backward()
before = peak()
if {training}:
    layer(PackedSequence(x, sizes))[0].data.sum().backward()
else:
    with torch.inference_mode():
        layer(PackedSequence(x, sizes))
print(peak() - before)
"""


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_memory_of_packed_sequences_grows_with_their_tokens(kind: str, training: bool) -> None:
    """One sequence of 6000 steps and 400 of 3: 7200 rows, where the padded batch has 2.4 million."""
    done = run_python(PEAK.format(kind=kind, training=training))
    assert done.stderr == ""
    row = 4 * 7200 * 128
    assert int(done.stdout) < (60 if training else 12) * row
