"""fastrnn.torch's modules as programs use them: parametrisations, checkpoints, hooks, threads."""

import threading
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from test_torch_autograd import B, H, I, T, every_kind, make, wanting  # noqa: E402


@every_kind
class TestInUse:
    def test_functional_call_reads_the_given_parameters(self, kind: str) -> None:
        ours, theirs = make(kind), getattr(nn, kind)(I, H, dtype=torch.float64)
        theirs.load_state_dict({n: 2 * p for n, p in ours.state_dict().items()})
        doubled = {n: 2 * p for n, p in ours.named_parameters()}
        x = torch.randn(T, B, I, dtype=torch.float64)
        torch.testing.assert_close(torch.func.functional_call(ours, doubled, (x,))[0], theirs(x)[0])

    def test_weight_norm(self, kind: str) -> None:
        ours = make(kind)
        theirs = getattr(nn, kind)(I, H, dtype=torch.float64)
        theirs.load_state_dict(ours.state_dict())
        x = torch.randn(T, B, I, dtype=torch.float64)
        for layer in (ours, theirs):
            nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
            with torch.no_grad():
                layer.parametrizations.weight_hh_l0.original0.mul_(3)
            layer(x)[0].sum().backward()
        torch.testing.assert_close(ours(x)[0], theirs(x)[0])
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)

    @pytest.mark.parametrize("use_reentrant", [False, True])
    def test_checkpoint(self, kind: str, use_reentrant: bool) -> None:
        layer = make(kind)
        gradients = []
        x = torch.randn(T, B, I, dtype=torch.float64)
        for run in (layer, lambda x: torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=use_reentrant)):
            (point,) = wanting(x)
            layer.zero_grad()
            run(point)[0].square().sum().backward()
            gradients.append([point.grad, *(p.grad.clone() for p in layer.parameters())])
        for a, b in zip(*gradients, strict=True):
            assert torch.equal(a, b)

    def test_hooks(self, kind: str) -> None:
        layer = make(kind)
        seen = []
        layer.register_forward_hook(lambda module, given, result: seen.append("forward"))
        layer.register_full_backward_hook(lambda module, into, outof: seen.append("backward"))
        layer.weight_ih_l0.register_hook(lambda gradient: gradient * 0)
        (x,) = wanting(torch.randn(T, B, I, dtype=torch.float64))
        layer(x)[0].sum().backward()
        assert seen == ["forward", "backward"]
        assert not layer.weight_ih_l0.grad.any()

    def test_backward_twice(self, kind: str) -> None:
        layer = make(kind)
        y, _ = layer(torch.randn(T, B, I, dtype=torch.float64))
        y.sum().backward(retain_graph=True)
        once = layer.weight_hh_l0.grad.clone()
        y.sum().backward()
        assert torch.equal(layer.weight_hh_l0.grad, 2 * once)

    def test_eight_threads(self, kind: str) -> None:
        layer = make(kind, torch.float32, num_layers=2)
        x = torch.randn(50, 8, I)
        (wanted,) = torch.autograd.grad(layer(x)[0].sum(), layer.weight_hh_l0)
        found: list[Any] = []

        def work() -> None:
            for _ in range(5):
                found.extend(torch.autograd.grad(layer(x)[0].sum(), layer.weight_hh_l0))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 40
        for gradient in found:
            torch.testing.assert_close(gradient, wanted)

    def test_fewer_threads_are_heeded(self, kind: str) -> None:
        layer = make(kind, torch.float32)
        x = torch.randn(T, B, I)
        before = torch.get_num_threads()
        wanted = layer(x)[0]
        try:
            torch.set_num_threads(1)
            assert torch.equal(layer(x)[0], wanted)
        finally:
            torch.set_num_threads(before)
