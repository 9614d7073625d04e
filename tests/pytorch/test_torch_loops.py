"""A cell called in a loop: the gradients of its weights, computed once for all steps, are those of torch.nn."""

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from torch_support import ft, nn, torch

import torch.distributed as dist  # isort: skip
from torch.utils.checkpoint import checkpoint  # isort: skip

KINDS = ("LSTMCell", "GRUCell", "RNNCell")
STEPS, B, I, H = 5, 3, 4, 6


def cells(kind: str, **options: Any) -> tuple[Any, Any]:
    theirs = getattr(nn, kind)(I, H, dtype=torch.float64, **options)
    ours = getattr(ft, kind)(I, H, dtype=torch.float64, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def inputs() -> Any:
    return torch.randn(STEPS, B, I, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def unroll(cell: Any, x: Any, state: Any = None) -> list[Any]:
    """h of every step."""
    found = []
    for x_t in x:
        state = cell(x_t, state)
        found.append(state[0] if isinstance(state, tuple) else state)
    return found


def loss(cell: Any, x: Any) -> Any:
    return sum((t + 1) * h.square().sum() for t, h in enumerate(unroll(cell, x)))


def gradients(cell: Any) -> list[Any]:
    return [p.grad for p in cell.parameters()]


def plain(cell: Any, x: Any) -> list[Any]:
    loss(cell, x).backward()
    return [x.grad, *gradients(cell)]


def twice_over_one_graph(cell: Any, x: Any) -> list[Any]:
    value = loss(cell, x)
    value.backward(retain_graph=True)
    value.backward()
    return [x.grad, *gradients(cell)]


def two_losses_over_one_loop(cell: Any, x: Any) -> list[Any]:
    h = unroll(cell, x)
    h[-1].sum().backward(retain_graph=True)
    h[2].square().sum().backward()
    return [x.grad, *gradients(cell)]


def inputs_first(cell: Any, x: Any) -> list[Any]:
    value = loss(cell, x)
    (of_x,) = torch.autograd.grad(value, x, retain_graph=True)
    value.backward()
    return [of_x, x.grad, *gradients(cell)]


def one_weight_only(cell: Any, x: Any) -> list[Any]:
    return list(torch.autograd.grad(loss(cell, x), [cell.weight_hh]))


def a_frozen_weight(cell: Any, x: Any) -> list[Any]:
    cell.weight_ih.requires_grad_(False)
    loss(cell, x).backward()
    assert cell.weight_ih.grad is None
    return [x.grad, *(p.grad for p in cell.parameters() if p.requires_grad)]


def all_frozen(cell: Any, x: Any) -> list[Any]:
    for p in cell.parameters():
        p.requires_grad_(False)
    loss(cell, x).backward()
    return [x.grad]


def second_derivatives(cell: Any, x: Any) -> list[Any]:
    first = torch.autograd.grad(loss(cell, x), [x, *cell.parameters()], create_graph=True)
    sum(g.square().sum() for g in first).backward()
    return [*(g.detach() for g in first), x.grad, *gradients(cell)]


def hooks(cell: Any, x: Any) -> list[Any]:
    seen: list[Any] = []
    for p in cell.parameters():
        p.register_hook(lambda g: seen.append(g.clone()) or 2 * g)
        p.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    loss(cell, x).backward()
    return [x.grad, *gradients(cell), *sorted(seen, key=lambda t: (t.shape, t.sum().item()))]


def accumulated(cell: Any, x: Any) -> list[Any]:
    for _ in range(3):
        loss(cell, x).backward()
    return [x.grad, *gradients(cell)]


def trained(cell: Any, x: Any) -> list[Any]:
    optimizer = torch.optim.SGD(cell.parameters(), 0.05)
    for _ in range(4):
        optimizer.zero_grad()
        loss(cell, x).backward()
        optimizer.step()
    return list(cell.parameters())


def checkpointed(cell: Any, x: Any, reentrant: bool) -> list[Any]:
    def run(h: Any, *rows: Any) -> Any:
        for row in rows:
            h = cell(row, h) if not isinstance(cell, nn.LSTMCell | ft.LSTMCell) else cell(row, (h, h))[0]
        return h

    h = torch.zeros(B, H, dtype=torch.float64)
    h = checkpoint(run, h, *x[:3], use_reentrant=reentrant)
    run(h, *x[3:]).square().sum().backward()
    return [x.grad, *gradients(cell)]


def checkpointed_reentrant(cell: Any, x: Any) -> list[Any]:
    return checkpointed(cell, x, True)


def checkpointed_by_hooks(cell: Any, x: Any) -> list[Any]:
    return checkpointed(cell, x, False)


def after_an_exception(cell: Any, x: Any) -> list[Any]:
    def fail(gradient: Any) -> None:
        raise ZeroDivisionError

    h = unroll(cell, x)
    h[1].register_hook(fail)
    with pytest.raises(ZeroDivisionError):
        h[-1].sum().backward()
    cell.zero_grad()
    x.grad = None
    loss(cell, x).backward()
    return [x.grad, *gradients(cell)]


def stored_elsewhere(cell: Any, x: Any) -> list[Any]:
    def pack(t: Any) -> Any:
        return t.detach().numpy().copy(), t.requires_grad

    def unpack(packed: Any) -> Any:
        return torch.from_numpy(packed[0].T.copy().T).requires_grad_(packed[1])  # with other strides, too

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        value = loss(cell, x)
    value.backward()
    return [x.grad, *gradients(cell)]


def in_another_thread(cell: Any, x: Any) -> list[Any]:
    value = loss(cell, x)
    other = threading.Thread(target=value.backward)
    other.start()
    other.join()
    return [x.grad, *gradients(cell)]


def in_two_threads_at_once(cell: Any, x: Any) -> list[Any]:
    value = loss(cell, x)
    found: list[Any] = [None, None]
    start = threading.Barrier(2)

    def run(k: int) -> None:
        start.wait()
        found[k] = torch.autograd.grad(value, [x, *cell.parameters()], retain_graph=True)

    others = [threading.Thread(target=run, args=(k,)) for k in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    return [*found[0], *found[1]]


def distributed(cell: Any, x: Any) -> list[Any]:
    """By DistributedDataParallel, whose hooks on the parameters count the gradients that are ready."""
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(Unrolled(cell), find_unused_parameters=True)
        for _ in range(2):
            model(x).backward()
    finally:
        dist.destroy_process_group()
    return [x.grad, *gradients(cell)]


class Unrolled(nn.Module):
    def __init__(self, cell: Any) -> None:
        super().__init__()
        self.cell, self.unused = cell, nn.Linear(2, 2)

    def forward(self, x: Any) -> Any:
        return loss(self.cell, x)


def with_functional_call(cell: Any, x: Any) -> list[Any]:
    def value(parameters: Any) -> Any:
        return sum(
            (t + 1) * h.square().sum()
            for t, h in enumerate(unroll(lambda *a: torch.func.functional_call(cell, parameters, a), x.detach()))
        )

    found = torch.func.grad(value)({k: p.detach() for k, p in cell.named_parameters()})
    return [found[k] for k, _ in cell.named_parameters()]


def a_loop_without_backward_before(cell: Any, x: Any) -> list[Any]:
    unroll(cell, x)
    return plain(cell, x)


CASES: dict[str, Callable[[Any, Any], list[Any]]] = {
    case.__name__: case
    for case in (
        plain,
        twice_over_one_graph,
        two_losses_over_one_loop,
        inputs_first,
        one_weight_only,
        a_frozen_weight,
        all_frozen,
        second_derivatives,
        hooks,
        accumulated,
        trained,
        checkpointed_reentrant,
        checkpointed_by_hooks,
        after_an_exception,
        stored_elsewhere,
        in_another_thread,
        in_two_threads_at_once,
        distributed,
        with_functional_call,
        a_loop_without_backward_before,
    )
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_torch(kind: str, case: str, bias: bool) -> None:
    found = [CASES[case](cell, inputs().requires_grad_()) for cell in cells(kind, bias=bias)]
    assert len(found[0]) == len(found[1])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_change_before_backward_are_an_error(kind: str) -> None:
    for cell in cells(kind):
        value = loss(cell, inputs())
        with torch.no_grad():
            cell.weight_hh.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_threads_gives_the_same_bits(kind: str) -> None:
    cell = getattr(ft, kind)(64, 128)
    x = torch.randn(STEPS, 16, 64)
    found = []
    before = torch.get_num_threads()
    try:
        for n in (1, 2, 4):
            torch.set_num_threads(n)
            cell.zero_grad()
            loss(cell, x).backward()
            found.append([g.clone() for g in gradients(cell)])
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(others, found[0], strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_with_a_past_can_be_copied_and_let_go(kind: str) -> None:
    _, cell = cells(kind)
    plain(cell, inputs().requires_grad_())
    for again in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        again.zero_grad()
        cell.zero_grad()
        for ours, theirs in zip(*(plain(c, inputs().requires_grad_()) for c in (again, cell)), strict=True):
            assert torch.equal(ours, theirs)
    parameter, module = weakref.ref(cell.weight_hh), weakref.ref(cell)
    del cell
    gc.collect()
    assert module() is None
    assert parameter() is None


def test_weights_shared_by_two_cells() -> None:
    def tied(module: Any) -> Any:
        first, second = module.GRUCell(H, H, dtype=torch.float64), module.GRUCell(H, H, dtype=torch.float64)
        second.weight_hh = first.weight_hh
        return nn.ModuleList([first, second])

    theirs, ours = tied(nn), tied(ft)
    ours.load_state_dict(theirs.state_dict())
    found = []
    for first, second in (theirs, ours):
        h = g = torch.ones(B, H, dtype=torch.float64)
        for _ in range(STEPS):
            h = first(g, h)
            g = second(h, g)
        g.square().sum().backward()
        found.append([p.grad for m in (first, second) for p in m.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a)
