"""What a program notices of its recurrent modules after accelerate: their class, copies, files, tracers, dtypes."""

import copy
import io
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support import run_python
from torch_support import ft, nn, torch

from torch.nn.utils import parametrize  # isort: skip
from torch.nn.utils.parametrizations import weight_norm  # isort: skip

LAYERS = ("LSTM", "GRU", "RNN")
CELLS = ("LSTMCell", "GRUCell", "RNNCell")
I, H, T, B = 3, 4, 5, 2

every_kind = pytest.mark.parametrize("kind", [*LAYERS, *CELLS])


def made(kind: str, **options: Any) -> Any:
    """An accelerated module of torch.nn's."""
    return ft.accelerate(getattr(nn, kind)(I, H, **options)).model


def data(kind: str) -> Any:
    return torch.randn((B, I) if kind in CELLS else (T, B, I), generator=torch.Generator().manual_seed(0))


def first(found: Any) -> Any:
    return found[0] if isinstance(found, tuple) else found


def is_ours(module: Any) -> bool:
    return type(module).forward in [getattr(ft, kind).forward for kind in (*LAYERS, *CELLS)]


class TestEveryKind:
    @every_kind
    def test_isinstance(self, kind: str) -> None:
        module = made(kind)
        assert isinstance(module, getattr(nn, kind))
        assert isinstance(module, getattr(ft, kind))
        others = [other for other in (*LAYERS, *CELLS) if other != kind]
        assert not isinstance(module, tuple(getattr(nn, other) for other in others))
        assert type(ft.restore(module)) is getattr(nn, kind)
        assert not isinstance(module, getattr(ft, kind))

    @every_kind
    def test_repr(self, kind: str) -> None:
        assert repr(made(kind)) == repr(getattr(nn, kind)(I, H))

    @every_kind
    @pytest.mark.parametrize(
        "copied",
        [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: saved(m)],
        ids=["copy", "deepcopy", "pickle", "torch.save"],
    )
    def test_copies(self, kind: str, copied: Callable[[Any], Any]) -> None:
        module = made(kind)
        other = copied(module)
        assert is_ours(other)
        assert isinstance(other, getattr(nn, kind))
        assert torch.equal(first(other(data(kind))), first(module(data(kind))))

    @every_kind
    def test_weight_averages(self, kind: str) -> None:
        module = made(kind)
        average = torch.optim.swa_utils.AveragedModel(module)
        average.update_parameters(module)
        assert torch.equal(first(average(data(kind))), first(module(data(kind))))

    @every_kind
    def test_parametrized(self, kind: str) -> None:
        name = "weight_hh" if kind in CELLS else "weight_hh_l0"
        module, x = made(kind), data(kind)
        wanted = first(module(x))
        weight_norm(module, name)
        assert is_ours(module)
        assert isinstance(module, getattr(nn, kind))
        torch.testing.assert_close(first(module(x)), wanted)
        other = copy.deepcopy(module)
        assert is_ours(other)
        torch.testing.assert_close(first(other(x)), wanted)
        ft.restore(other)
        assert not is_ours(other)
        torch.testing.assert_close(first(other(x)), wanted)
        assert is_ours(ft.accelerate(other).model)
        parametrize.remove_parametrizations(module, name)
        assert type(module) is getattr(ft, kind)
        torch.testing.assert_close(first(module(x)), wanted)

    @every_kind
    def test_compiled(self, kind: str) -> None:
        module, x = made(kind), data(kind)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(first(compiled(x)), first(module(x)))
        weight_norm(module, "weight_hh" if kind in CELLS else "weight_hh_l0")
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(first(compiled(x)), first(module(x)))

    @every_kind
    @pytest.mark.parametrize("strict", [False, True])
    def test_exported_in_eval_mode(self, kind: str, strict: bool) -> None:
        """Without a tape, and differentiable."""
        module, x = made(kind).eval(), data(kind)
        first(module(x)).square().sum().backward()
        wanted = [p.grad.clone() for p in module.parameters()]
        module.zero_grad()
        program = torch.export.export(module, (x,), strict=strict)
        assert "fastrnn.infer.default" in str(program.graph)
        assert "fastrnn.train.default" not in str(program.graph)
        again = program.module()
        found = first(again(x))
        torch.testing.assert_close(found, first(module(x)))
        found.square().sum().backward()
        for parameter, gradient in zip(again.parameters(), wanted, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)

    @every_kind
    def test_exported_in_training_mode(self, kind: str) -> None:
        program = torch.export.export(made(kind), (data(kind),))
        assert "fastrnn.train.default" in str(program.graph)

    @every_kind
    def test_a_leaf_of_fx(self, kind: str) -> None:
        module = nn.Sequential()
        module.rnn = made(kind)
        graph = torch.fx.symbolic_trace(module)
        assert [(n.op, n.target) for n in graph.graph.nodes if n.op.startswith("call")] == [("call_module", "rnn")]
        assert graph.rnn is module.rnn
        assert torch.equal(first(graph(data(kind))), first(module(data(kind))))

    @every_kind
    @pytest.mark.parametrize("how", ["script", "trace"])
    def test_torchscript(self, kind: str, how: str) -> None:
        module, x = nn.Sequential(made(kind)), data(kind)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            with pytest.raises(
                RuntimeError, match=r"use torch\.export or torch\.compile, or call fastrnn\.torch\.rest"
            ):
                torch.jit.script(module) if how == "script" else torch.jit.trace(module, x)
            ft.restore(module)
            scripted = torch.jit.script(module)
            (why,) = ft.accelerate(scripted).skipped.values()
        assert "accelerate the model that it was made of" in why

    @every_kind
    @pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float64], ids=str)
    def test_the_dtype_under_autocast(self, kind: str, lower: Any, given: Any) -> None:
        if kind == "LSTM" and lower == torch.float16:
            pytest.skip("torch.nn's LSTM depends on the processor there")
        parameters = torch.float64 if given == torch.float64 else torch.float32
        plain, x = getattr(nn, kind)(I, H, dtype=parameters), data(kind).to(given)
        with torch.autocast("cpu", lower):
            if kind == "LSTM" and given == torch.float32:  # which oneDNN refuses on processors without bfloat16
                wanted: Any = (torch.empty(0, dtype=lower), (torch.empty(0, dtype=lower),) * 2)
            else:
                wanted = plain(x)
            found = ft.accelerate(plain).model(x)
        assert dtypes(found) == dtypes(wanted)
        if kind in LAYERS:
            packed = nn.utils.rnn.pack_padded_sequence(x, [T, T - 1])
            with torch.autocast("cpu", lower):
                assert plain(packed)[0].data.dtype == first(found).dtype


def dtypes(found: Any) -> list[Any]:
    return [d for part in found for d in dtypes(part)] if isinstance(found, tuple) else [found.dtype]


def saved(module: Any) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


# ---- classes derived from torch.nn's


class Renamed(nn.LSTM):
    pass


class Doubled(nn.LSTM):
    def forward(self, x: Any, hx: Any = None) -> Any:
        y, ends = super().forward(x, hx)
        return 2 * y, ends


class Redoubled(Doubled):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        y, ends = Doubled.forward(self, *args, **kwargs)
        return 2 * y, ends


class Mixin:
    def twice(self, x: Any) -> Any:
        return self(x)[0] + self(x)[0]  # type: ignore[operator]


class Mixed(Mixin, nn.GRU):
    pass


class Named(nn.LSTM):
    def forward(self, x: Any, hx: Any = None) -> Any:
        return nn.LSTM.forward(self, x, hx)


class Unchecked(nn.LSTM):
    def check_forward_args(self, *args: Any) -> None:
        pass


class Decayed(nn.GRUCell):
    def forward(self, x: Any, hx: Any = None) -> Any:
        return 0.5 * super().forward(x, hx)


class TestDerivedClasses:
    @pytest.mark.parametrize("kind", [Renamed, Doubled, Mixed, Decayed], ids=lambda k: k.__name__)
    def test_accelerated(self, kind: Any) -> None:
        module = kind(I, H)
        x = data(kind.__mro__[-5].__name__ if kind is Mixed else "GRUCell" if kind is Decayed else "LSTM")
        wanted = first(module(x))
        report = ft.accelerate(module)
        assert report.skipped == {}
        assert isinstance(module, (ft.LSTM, ft.GRU, ft.GRUCell))
        assert isinstance(module, kind)
        assert module.__class__ is kind
        for other in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module)), saved(module)):
            assert isinstance(other, kind)
            assert isinstance(other, (ft.LSTM, ft.GRU, ft.GRUCell))
            torch.testing.assert_close(first(other(x)), wanted)
        if kind is Mixed:
            torch.testing.assert_close(module.twice(x), 2 * wanted)
        assert type(ft.restore(module)) is kind

    @pytest.mark.parametrize(
        ("kind", "why"),
        [
            (Named, "its forward does not call super().forward"),
            (Redoubled, "its forward does not call super().forward"),
            (Unchecked, "has its own check_forward_args"),
        ],
    )
    def test_left_alone(self, kind: Any, why: str) -> None:
        module = kind(I, H)
        report = ft.accelerate(module)
        assert report.replaced == {}
        assert why in report.skipped[""]
        assert type(module) is kind


# ---- quantization


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:torch.quantize_per_tensor")
class TestQuantization:
    def test_of_an_accelerated_model(self) -> None:
        model = nn.ModuleDict({"rnn": nn.LSTM(I, H), "out": nn.Linear(H, 2)})
        ft.accelerate(model)
        with pytest.warns(UserWarning, match=r"LSTM computed by fastrnn is not quantized.*restore\(model\)"):
            found = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM, nn.Linear})
        assert "Quantized" in type(found["out"]).__name__ or "quantized" in type(found["out"]).__module__
        assert is_ours(found["rnn"])

    def test_of_a_restored_model(self) -> None:
        model = nn.ModuleDict({"rnn": nn.LSTM(I, H)})
        ft.restore(ft.accelerate(model).model)
        found = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM})
        assert "quantized" in type(found["rnn"]).__module__
        report = ft.accelerate(found)
        assert report.replaced["rnn"].endswith("of torch.ao, its int8 as it is")


# ---- arguments


BAD_STATES: dict[str, Any] = {
    "a tensor": torch.zeros(B, H),
    "a tensor of two": torch.zeros(2, B, H),
    "three": (torch.zeros(B, H),) * 3,
    "one": (torch.zeros(B, H),),
    "none": (),
    "nested": ((torch.zeros(B, H), torch.zeros(B, H)),),
    "None in a pair": (torch.zeros(B, H), None),
    "of rank 3": (torch.zeros(1, B, H), torch.zeros(1, B, H)),
    "of rank 1": (torch.zeros(H), torch.zeros(H)),
    "of other sizes": (torch.zeros(B, H + 1), torch.zeros(B, H + 1)),
}


@pytest.mark.parametrize("states", BAD_STATES)
def test_malformed_states_of_an_lstm_cell(states: str) -> None:
    plain, x = nn.LSTMCell(I, H), data("LSTMCell")
    with pytest.raises(Exception) as wanted:  # noqa: PT011 (whatever torch.nn raises)
        plain(x, BAD_STATES[states])
    with pytest.raises(type(wanted.value)) as found:
        ft.accelerate(plain).model(x, BAD_STATES[states])
    assert str(found.value) == str(wanted.value)


@pytest.mark.parametrize("kind", CELLS[1:])
def test_cells_without_hidden_units(kind: str) -> None:
    module = ft.accelerate(getattr(nn, kind)(I, 0)).model
    assert module(data(kind)).shape == (B, 0)


# ---- AOTInductor


@pytest.mark.parametrize("kind", ["LSTM", "GRUCell"])
@pytest.mark.filterwarnings("ignore")
def test_a_package_of_aotinductor_runs_without_states(kind: str, tmp_path: Path) -> None:
    if shutil.which("g++") is None and shutil.which("c++") is None:
        pytest.skip("AOTInductor needs a C++ compiler")
    module, x = made(kind).eval(), data(kind)
    program = torch.export.export(module, (x,))
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    torch.testing.assert_close(first(torch._inductor.aoti_load_package(package)(x)), first(module(x)))


# ---- imports


def test_a_second_import() -> None:
    done = run_python(
        """
        import sys, torch, fastrnn.torch
        old = fastrnn.torch.LSTM(3, 4)
        x = torch.randn(5, 2, 3, requires_grad=True)
        wanted = old(x)[0]
        for name in [name for name in sys.modules if name.partition(".")[0] == "fastrnn"]:
            del sys.modules[name]
        import fastrnn.torch as again
        assert again.LSTM is not type(old)
        new = again.LSTM(3, 4)
        new.load_state_dict(old.state_dict())
        for module in (old, new):
            y = module(x)[0]
            assert torch.equal(y, wanted)
            y.sum().backward()
            torch.compile(module, backend="aot_eager", fullgraph=True)(x)
        """
    )
    assert done.returncode == 0, done.stderr


def test_an_import_that_was_cut_off() -> None:
    done = run_python(
        """
        import builtins, sys, torch
        original = builtins.__import__

        def interrupted(name, *args):
            if name == "replace":
                raise KeyboardInterrupt
            return original(name, *args)

        builtins.__import__ = interrupted
        try:
            import fastrnn.torch
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError
        builtins.__import__ = original
        import fastrnn.torch
        fastrnn.torch.LSTM(3, 4)(torch.randn(5, 2, 3))[0].sum().backward()
        """
    )
    assert done.returncode == 0, done.stderr
