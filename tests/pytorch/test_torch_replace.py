"""accelerate and restore: which modules change, that nothing else does, and that training goes on as before."""

import copy
import subprocess
import sys
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402

import fastrnn.torch as ft  # noqa: E402


class Tagger(nn.Module):
    """Words to tags: the kind of model that people have."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 12)
        self.encoder = nn.LSTM(12, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.decoder = nn.ModuleDict({"gru": nn.GRU(32, 8, batch_first=True), "cell": nn.RNNCell(8, 8)})
        self.tags = nn.Linear(8, 5)

    def forward(self, words: Any, lengths: Any) -> Any:
        packed = pack_padded_sequence(self.embedding(words), lengths, batch_first=True, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.encoder(packed)[0], batch_first=True)
        y, last = self.decoder["gru"](y)
        return self.tags(y + self.decoder["cell"](last[0])[:, None])


class Changed(nn.LSTM):
    """A subclass whose forward has nothing to do with torch.nn's."""

    def forward(self, x: Any) -> Any:
        return x


def model_and_data() -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    return Tagger(), torch.randint(0, 50, (4, 9)), torch.tensor([9, 2, 5, 7])


class TestAccelerate:
    def test_the_same_results_and_parameters(self) -> None:
        model, words, lengths = model_and_data()
        wanted = model(words, lengths)
        before = dict(model.named_parameters())
        report = ft.accelerate(model)
        assert report.model is model
        assert list(report.replaced) == ["encoder", "decoder.gru", "decoder.cell"]
        assert report.skipped == {}
        assert [type(model.encoder), type(model.decoder["gru"]), type(model.decoder["cell"])] == [
            ft.LSTM,
            ft.GRU,
            ft.RNNCell,
        ]
        for name, parameter in model.named_parameters():
            assert parameter is before[name]
        torch.testing.assert_close(model(words, lengths), wanted)

    def test_report(self) -> None:
        model, _, _ = model_and_data()
        model.odd = Changed(3, 4)
        assert str(ft.accelerate(model, exclude="decoder.*")) == (
            "fastrnn runs 1 of 4 recurrent modules\n"
            "  encoder       LSTM(12, 16, num_layers=2, batch_first=True, bidirectional=True)\n"
            "  decoder.gru   skipped: excluded\n"
            "  decoder.cell  skipped: excluded\n"
            "  odd           skipped: Changed is derived from torch.nn.LSTM, and its forward does not call "
            "super().forward"
        )

    def test_a_model_without_any(self) -> None:
        assert str(ft.accelerate(nn.Linear(2, 3))) == (
            "fastrnn runs 0 of 0 recurrent modules\n"
            "  Linear.modules() has none: a loss or a trainer may keep its network elsewhere; accelerate that"
        )

    def test_a_copy(self) -> None:
        model, words, lengths = model_and_data()
        report = ft.accelerate(model, inplace=False)
        assert type(model.encoder) is nn.LSTM
        assert type(report.model.encoder) is ft.LSTM
        torch.testing.assert_close(report.model(words, lengths), model(words, lengths))

    def test_a_layer_itself(self) -> None:
        layer = nn.GRU(3, 4)
        assert ft.accelerate(layer).replaced == {"": "GRU(3, 4)"}
        assert type(layer) is ft.GRU

    def test_include(self) -> None:
        model, _, _ = model_and_data()
        report = ft.accelerate(model, include=["enc*", "decoder.cell"], exclude="*.cell")
        assert list(report.replaced) == ["encoder"]
        assert report.skipped == {"decoder.gru": "not included", "decoder.cell": "excluded"}

    @pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")
    @pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
    def test_what_is_left_alone(self) -> None:
        model = nn.ModuleDict(
            {
                "scripted": torch.jit.script(nn.GRU(2, 3)),
                "patched": nn.GRU(2, 3),
                "complex": nn.GRU(2, 3, device="meta").to(torch.complex64),
                "other": nn.Linear(2, 3),
                "ours": ft.GRU(2, 3),
            }
        )
        model["patched"].forward = lambda x: x
        report = ft.accelerate(model)
        assert report.replaced == {}
        assert report.skipped == {
            "scripted": "it is compiled by TorchScript, which does not know fastrnn: accelerate the model that it was "
            "made of",
            "patched": "its forward was replaced",
            "complex": "its parameters are torch.complex64",
        }

    def test_what_is_done_already(self) -> None:
        class Own(ft.LSTM):
            pass

        model = nn.ModuleDict({"ours": ft.GRU(2, 3), "own": Own(2, 3), "theirs": nn.RNN(2, 3)})
        report = ft.accelerate(model, fallback=True, exclude="own")
        assert report.already == {"ours": "GRU(2, 3)", "own": "Own(2, 3)"}
        assert list(report.replaced) == ["theirs"]
        assert str(report).startswith("fastrnn runs 3 of 3 recurrent modules\n")
        assert [m._fallback for m in model.values()] == [True, False, True]

    def test_bad_arguments(self) -> None:
        model, _, _ = model_and_data()
        with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module, got dict"):
            ft.accelerate({})
        with pytest.raises(ValueError, match="include='rnn', which fits no module"):
            ft.accelerate(model, include="rnn")
        assert type(model.encoder) is nn.LSTM

    def test_hooks_and_mode_stay(self) -> None:
        layer = nn.LSTM(3, 4).eval()
        seen = []
        layer.register_forward_pre_hook(lambda module, given: seen.append(type(module)))
        ft.accelerate(layer)
        layer(torch.zeros(2, 1, 3))
        assert not layer.training
        assert seen == [ft.LSTM]

    def test_tied_weights(self) -> None:
        a, b = nn.GRU(4, 4), nn.GRU(4, 4)
        b.weight_hh_l0 = a.weight_hh_l0
        both = nn.ModuleList([a, b])
        ft.accelerate(both)
        y, _ = b(a(torch.ones(2, 1, 4))[0])
        y.sum().backward()
        assert b.weight_hh_l0 is a.weight_hh_l0
        assert len(list(both.parameters())) == 7
        assert a.weight_hh_l0.grad.any()


class TestRestore:
    def test_restore(self) -> None:
        model, words, lengths = model_and_data()
        before = {name: type(m) for name, m in model.named_modules()}
        wanted = model(words, lengths)
        ft.accelerate(model, fallback=True)
        assert ft.restore(model) is model
        assert {name: type(m) for name, m in model.named_modules()} == before
        assert "_fallback" not in vars(model.encoder)
        assert torch.equal(model(words, lengths), wanted)

    def test_context(self) -> None:
        model, _, _ = model_and_data()
        model.ours = ft.GRU(2, 3)
        with ft.accelerate(model) as report:
            assert type(model.encoder) is ft.LSTM
            assert report.model is model
        assert type(model.encoder) is nn.LSTM
        assert type(model.ours) is ft.GRU

    def test_old_checkpoints(self) -> None:
        model, words, lengths = model_and_data()
        state = copy.deepcopy(model.state_dict())
        fast, _, _ = model_and_data()
        ft.accelerate(fast)
        fast.load_state_dict(state)
        model.load_state_dict(fast.state_dict())
        torch.testing.assert_close(fast(words, lengths), model(words, lengths))

    def test_a_module_that_leaves_in_the_block(self) -> None:
        model = nn.Sequential(nn.LSTM(2, 3), nn.GRU(3, 3))
        kept = list(model)
        with ft.accelerate(model):
            del model[0]
        assert [type(m) for m in kept] == [nn.LSTM, nn.GRU]

    @pytest.mark.parametrize("first", [False, True])
    def test_parametrized_modules(self, first: bool) -> None:
        """PyTorch makes a class of its own for each of these."""
        layer = nn.GRU(3, 4)
        x = torch.randn(2, 1, 3)
        if first:
            ft.accelerate(layer)
        nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
        if not first:
            ft.accelerate(layer)
        assert isinstance(layer, ft.GRU)
        y = layer(x)[0]
        ft.restore(layer)
        assert isinstance(layer, nn.GRU)
        assert not isinstance(layer, ft.GRU)
        torch.testing.assert_close(layer(x)[0], y)
        nn.utils.parametrize.remove_parametrizations(layer, "weight_hh_l0")
        torch.testing.assert_close(layer(x)[0], y)


class TestDevices:
    def test_another_device_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        layer = ft.LSTM(3, 4)
        cell = ft.GRUCell(3, 4)

        class Elsewhere:
            """What a CUDA tensor looks like to the check, on a machine without one."""

            device = torch.device("cuda", 1)

        from fastrnn.torch import guards

        monkeypatch.setattr(guards, "_without_gpu", lambda: "the cat sat on it")
        text = r"LSTM cannot compute with a tensor on cuda:1: the cat sat on it\. .*fallback=True"
        with pytest.raises(RuntimeError, match=text):
            guards.check_devices("lstm", Elsewhere())  # type: ignore[arg-type]
        monkeypatch.setattr(guards, "_without_gpu", lambda: None)
        guards.check_devices("lstm", Elsewhere())  # type: ignore[arg-type]
        assert layer(torch.zeros(2, 1, 3))[0].device == cell(torch.zeros(1, 3)).device == torch.device("cpu")

    @pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
    def test_what_the_fallback_runs(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """torch.nn's own code on our modules, taken here for tensors on the CPU."""
        options = {"num_layers": 2, "bidirectional": True, "batch_first": True}
        x = torch.randn(2, 5, 3)
        for module, given in ((getattr(nn, kind)(3, 4, **options), x), (getattr(nn, f"{kind}Cell")(3, 4), x[0])):
            wanted = module(given)
            ft.accelerate(module, fallback=True)
            monkeypatch.setattr(module, "_elsewhere", lambda input: True, raising=True)
            torch.testing.assert_close(module(given), wanted, rtol=0, atol=0)
            if module.__class__.__name__ == kind:
                with pytest.raises(ValueError, match="knows neither lengths nor reset"):
                    module(given, lengths=[5, 1])

    def test_fallback_on_the_meta_device_is_not_needed(self) -> None:
        layer = nn.LSTM(3, 4, device="meta")
        ft.accelerate(layer, fallback=True)
        assert layer(torch.empty(2, 1, 3, device="meta"))[0].device.type == "meta"


class TestTraining:
    def test_the_same_loss_curve(self) -> None:
        curves = []
        for fast in (False, True):
            model, words, lengths = model_and_data()
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
            if fast:
                ft.accelerate(model)  # with the optimizer already there
            targets = words % 5
            losses = []
            for _ in range(30):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(words, lengths).flatten(0, 1), targets.flatten())
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            curves.append(losses)
        assert curves[0][-1] < 0.7 * curves[0][0]
        torch.testing.assert_close(torch.tensor(curves[1]), torch.tensor(curves[0]), rtol=1e-3, atol=1e-3)


WORKER = """
import os, sys
import torch
import torch.distributed as dist
from torch import nn
import fastrnn.torch as ft

os.environ.update(MASTER_ADDR="127.0.0.1", RANK=sys.argv[2], WORLD_SIZE="2")
store = dist.FileStore(sys.argv[1], 2)
dist.init_process_group("gloo", store=store, rank=int(sys.argv[2]), world_size=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True))
ft.accelerate(model)
x = torch.randn(6, 5, 3)
model(x)[0].square().mean().backward()
alone = [p.grad.clone() for p in model.parameters()]
model.zero_grad()
mine = x[3 * int(sys.argv[2]):][:3]
if sys.argv[3] == "ddp":
    parallel = nn.parallel.DistributedDataParallel(model)
    parallel(mine)[0].square().mean().backward()
    together = [p.grad for p in model.parameters()]
else:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model[1], mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert isinstance(model[1], ft.LSTM) and isinstance(model[1], nn.LSTM), type(model[1]).__mro__
    model(mine)[0].square().mean().backward()
    together = [p.grad.full_tensor() for p in model.parameters()]
for a, b in zip(together, alone, strict=True):
    torch.testing.assert_close(a, b)
dist.barrier()
dist.destroy_process_group()
print("equal")
"""


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_two_processes(way: str, tmp_path: Any) -> None:
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    command = [sys.executable, "-c", WORKER, str(tmp_path / "store")]
    workers = [
        subprocess.Popen([*command, str(rank), way], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for worker in workers:
        out, errors = worker.communicate(timeout=180)
        assert worker.returncode == 0, errors
        assert out == "equal\n"


def test_importing_fastrnn_does_not_import_torch() -> None:
    code = "import sys, fastrnn; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [n for n in sys.modules if n.startswith("fastrnn.torch")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"pip install 'fastrnn\[torch\]'"):
        import fastrnn.torch  # noqa: F401
