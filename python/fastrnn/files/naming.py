"""Layers by the names and forms of PyTorch, Flax and Haiku, among the tensors of any file."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from .found import Found, complete, described, joined, zeros_like
from .tensors import Array, Tensor

_BASES = sorted({name for *_, description in described() for name, _, _ in description.parameters})
_PYTORCH = re.compile(rf"(?:(.*)[./])?({'|'.join(_BASES)})(_l\d{{1,4}}(?:_reverse)?)?")
# Flax's submodules of each cell, in PyTorch's order of gates
_FLAX = {"LSTM": ("i", "f", "g", "o"), "GRU": ("r", "z", "n")}
_MGU = {"if", "in", "hf", "hn"}


def find(tensors: Mapping[str, Tensor]) -> list[Found]:
    """Return the layers of PyTorch's, Flax's and Haiku's conventions, in the order of the file."""
    found = [*_pytorch(tensors), *_flax(tensors), *_haiku(tensors)]
    return [complete(layer) for layer in found]


def _pytorch(tensors: Mapping[str, Tensor]) -> list[Found]:
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _PYTORCH.fullmatch(name):
            prefix, base, suffix = match.groups()
            groups.setdefault(prefix or "", {})[base + (suffix or "_l0")] = tensor  # cells have no suffix
    assumed = {"reset_after": True}  # in PyTorch
    return [Found(name, "PyTorch", group, assumed=dict(assumed)) for name, group in groups.items()]


def _tree(tensors: Mapping[str, Tensor], depth: int) -> dict[str, dict[tuple[str, ...], Tensor]]:
    """Return the tensors by the path of their module and the last names of their own."""
    found: dict[str, dict[tuple[str, ...], Tensor]] = {}
    for name, tensor in tensors.items():
        parts = re.split(r"[./]", name)
        if len(parts) >= depth:
            found.setdefault("/".join(parts[:-depth]), {})[tuple(parts[-depth:])] = tensor
    return found


def _flax(tensors: Mapping[str, Tensor]) -> list[Found]:
    found = []
    for name, members in _tree(tensors, 2).items():
        modules = {module for module, kind in members if kind == "kernel"}
        for cell, gates in _FLAX.items():
            wanted = {side + gate for side in "ih" for gate in gates}
            if wanted <= modules:
                found.append(_flax_cell(name, members, cell, [(f"i{gate}", f"h{gate}") for gate in gates]))
        if modules == {"i", "h"}:
            found.append(_flax_cell(name, members, "RNN", [("i", "h")]))
        if modules == _MGU:
            found.append(Found(name, "Flax", {}, unfit="it is a minimal gated unit, which is not known here"))
    return found


def _flax_cell(name: str, members: Mapping[tuple[str, ...], Tensor], cell: str, gates: list[tuple[str, str]]) -> Found:
    """Join one kernel and at most one bias for each gate and side: (I,H) and (H,H) each, transposed."""
    made = {}
    for side, which in enumerate(("ih", "hh")):
        kernels = [members[gate[side], "kernel"] for gate in gates]
        if any(kernel.shape != kernels[0].shape or len(kernel.shape) != 2 for kernel in kernels):
            return Found(name, "Flax", {}, unfit=f"its kernels of {which} differ in shape")
        rows, columns = kernels[0].shape
        made[f"weight_{which}_l0"] = joined(
            kernels, (len(kernels) * columns, rows), lambda *a: np.concatenate([k.T for k in a])
        )
        hidden = columns
        biases = [members.get((gate[side], "bias")) for gate in gates]
        if any(biases):
            given = [bias for bias in biases if bias is not None]
            if any(bias.shape != (hidden,) for bias in given):
                return Found(name, "Flax", {}, unfit=f"its biases of {which} do not have {hidden} elements")
            present = [bias is not None for bias in biases]
            made[f"bias_{which}_l0"] = joined(given, (len(gates) * hidden,), _Spread(present))
    for one, other in (("bias_ih_l0", "bias_hh_l0"), ("bias_hh_l0", "bias_ih_l0")):
        if one in made and other not in made:
            made[other] = zeros_like(made[one])
    said = {"reset_after": True} if cell == "GRU" else {}
    return Found(name, "Flax", made, said=said)


class _Spread:
    """Joins the biases that are there, with zeros for those that are not."""

    def __init__(self, present: list[bool]) -> None:
        self._present = present

    def __call__(self, *given: Array) -> Array:
        rest = iter(given)
        return np.concatenate([next(rest) if there else np.zeros_like(given[0]) for there in self._present])


def _haiku(tensors: Mapping[str, Tensor]) -> list[Found]:
    found = []
    for name, members in _tree(tensors, 1).items():
        if {("w_i",), ("w_h",), ("b",)} <= members.keys():
            found.append(_haiku_gru(name, *(members[key,] for key in ("w_i", "w_h", "b"))))
    for name, members in _tree(tensors, 2).items():
        if re.fullmatch(r"(.*/)?lstm(_\d+)?", name) and {("linear", "w"), ("linear", "b")} <= members.keys():
            found.append(_haiku_lstm(name, members["linear", "w"], members["linear", "b"]))
        if re.fullmatch(r"(.*/)?vanilla_rnn(_\d+)?", name) and {("linear", "w"), ("linear_1", "w")} <= members.keys():
            found.append(_haiku_rnn(name, members))
    return found


def _haiku_gru(name: str, w_i: Tensor, w_h: Tensor, b: Tensor) -> Found:
    """Gates z, r, a with h = (1 - z) h_prev + z a: its z is 1 - z here, of the negative weights."""

    def turned(a: Array) -> Array:
        z, r, n = np.split(a, 3, axis=-1)
        return np.concatenate([r, -z, n], axis=-1).T

    if any(len(w.shape) != 2 for w in (w_i, w_h)) or b.shape != w_i.shape[1:] or w_i.shape[1] % 3:
        return Found(name, "Haiku", {}, unfit=f"w_i {w_i.shape}, w_h {w_h.shape} and b {b.shape} do not fit together")
    made = {
        "weight_ih_l0": joined([w_i], w_i.shape[::-1], turned),
        "weight_hh_l0": joined([w_h], w_h.shape[::-1], turned),
        "bias_ih_l0": joined([b], b.shape, turned),
        "bias_hh_l0": zeros_like(b),
    }
    return Found(name, "Haiku", made, said={"reset_after": False})


def _haiku_lstm(name: str, w: Tensor, b: Tensor) -> Found:
    """One matrix over [x, h], gates i, g, f, o, and 1 is added to f."""
    hidden = b.shape[0] // 4 if len(b.shape) == 1 else 0
    if len(w.shape) != 2 or hidden < 1 or w.shape[1] != 4 * hidden or w.shape[0] <= hidden:
        return Found(name, "Haiku", {}, unfit=f"w {w.shape} and b {b.shape} do not fit together")
    features = w.shape[0] - hidden

    def turned(a: Array) -> Array:
        i, g, f, o = np.split(a, 4, axis=-1)
        return np.concatenate([i, f, g, o], axis=-1).T

    def with_one(a: Array) -> Array:
        bias = turned(a).copy()
        bias[hidden : 2 * hidden] += 1
        return bias

    made = {
        "weight_ih_l0": joined([w], (4 * hidden, features), lambda a: turned(a[:features])),
        "weight_hh_l0": joined([w], (4 * hidden, hidden), lambda a: turned(a[features:])),
        "bias_ih_l0": joined([b], b.shape, with_one),
        "bias_hh_l0": zeros_like(b),
    }
    return Found(name, "Haiku", made)


def _haiku_rnn(name: str, members: Mapping[tuple[str, ...], Tensor]) -> Found:
    """relu, which cannot be chosen."""
    made: dict[str, Tensor] = {}
    for module, which in (("linear", "ih"), ("linear_1", "hh")):
        w, b = members[module, "w"], members.get((module, "b"))
        made[f"weight_{which}_l0"] = joined([w], w.shape[::-1], lambda a: a.T)
        if b is not None:
            made[f"bias_{which}_l0"] = b
    if "bias_ih_l0" in made and "bias_hh_l0" not in made:
        made["bias_hh_l0"] = zeros_like(made["bias_ih_l0"])
    said: dict[str, Any] = {"nonlinearity": "relu"}
    return Found(name, "Haiku", made, said=said)
