"""Layers from the recurrent nodes of ONNX files, and ONNX files from layers."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray

from ..checks import Problems
from ..convert import ONNX_GATES
from ..frozen import Frozen, pack
from ..layers import GRU, LSTM, RNN
from ..memory import as_real
from ..nodes import OLDEST, activation_attributes, no_layer, parse, weight_names
from ..options import zoneout_of
from ..storage import FileError, replacing
from .choosing import recurrent_nodes
from .constants import Constants
from .reading import attributes, opset, read_model, readable
from .running import Prepared, as_parameters, make_layer

Array = NDArray[Any]
Layer = RNN | GRU | LSTM
OPSET = 17
IR_VERSION = 8  # of that opset's time: older readers take it


class Layers(dict[str, Any]):
    """The layers of a model by the names of their nodes.

    Attributes
    ----------
    embeddings : dict of str to array
        For each node whose input is a Gather of rows of a constant, so an embedding: that constant (V,I), for
        ``layer(ids, embedding=layers.embeddings[name])``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embeddings: dict[str, Array] = {}


def load(model: Any, *, nodes: Iterable[str] | None = None, frozen: bool = False) -> Layers:
    """Make fastrnn's layers of the RNN, GRU, LSTM and DynamicQuantizeLSTM nodes of a model, in any graph inside it.

    Parameters
    ----------
    model : ModelProto, str, PathLike or bytes
        A model, the file of one, or what stands in such a file. Data in other files have to lie beside the file.
    nodes : iterable of str, optional
        The names of the nodes to load; by default all. A node without a name has that of its first output.
    frozen : bool
        Whether to return frozen layers, for inference, instead of ones that can be trained. The weights of a
        DynamicQuantizeLSTM, of com.microsoft, are then the int8 that they are; else what they stand for, in float32.

    Returns
    -------
    Layers
        A dict of layers by node name, each with one layer in the sense of ``num_layers``, and its ``embeddings``. They
        compute what the nodes do; of ``layout=1`` they are ``batch_first``. Y (T,D,B,H) is their y (T,B,D*H).

    Raises
    ------
    FileError
        If it is no ONNX model, contradicts itself, or has a node that no layer of fastrnn is equal to: one that runs
        in reverse only, whose weights come at run time, or with an attribute that fastrnn does not compute, which is
        then named. Nothing is returned then; `nodes` leaves it out.
    ValueError
        If a name in `nodes` is no recurrent node's.
    OSError
        If it cannot be read.
    """
    proto, name = read_model(model, "load")
    with readable(name):
        return _load(proto, name, None if nodes is None else dict.fromkeys(nodes), frozen)


def _load(proto: Any, name: str, wanted: Mapping[str, None] | None, frozen: bool) -> Layers:
    found, seen = Layers(), []
    for where, node, constants, maker in recurrent_nodes(proto, name):
        seen.append(where)
        if wanted is not None and where not in wanted:
            continue
        if opset(proto) < OLDEST:
            raise FileError(f"{name} is of opset {opset(proto)}; {node.op_type} is what it is since opset {OLDEST}")
        layer, found[where] = _layer(node, constants, f"{name}: the node {where} ({node.op_type})", frozen)
        embedding = _embedding(node, constants, maker, layer)
        if embedding is not None:
            found.embeddings[where] = embedding
    if unknown := [one for one in wanted or () if one not in found]:
        raise ValueError(f"load got nodes with {unknown[0]!r}; the recurrent nodes of {name} are {', '.join(seen)}.")
    return found


def _layer(node: Any, constants: Constants, who: str, frozen: bool) -> tuple[Layer, Layer | Frozen[Any]]:
    """The layer that computes what a node does, and the same frozen, where that is asked for."""
    try:
        parsed = parse(node.op_type, attributes(node), bool(node.input[7:8] and node.input[7]), who)
        names = weight_names(node.input, node.op_type)
        weights = [constants.get(one) if one else None for one in names]
        missing = [one for one, value in zip(names, weights, strict=True) if one and value is None]
        if problem := no_layer(parsed, missing):
            raise FileError(f"{who}: {problem}")
        checked = Prepared(parsed, weights, who=who, packed=False)
        weights = [None if a is None else a.astype(checked.computed) for a in checked.weights]
        layer: Layer = make_layer(parsed, as_parameters(parsed, weights), bool(parsed.layout))
    except FileError:
        raise
    except (ValueError, TypeError) as error:
        raise FileError(f"{error}") from error
    return layer, (pack(layer, parsed.words, checked.scales) if parsed.stored else layer.freeze()) if frozen else layer


def _embedding(node: Any, constants: Constants, maker: Any, layer: Layer) -> Array | None:
    """The constant (V,I) whose rows a Gather in front of a node takes."""
    gather = maker(node.input[0])
    if gather is None or gather.op_type != "Gather" or attributes(gather).get("axis", 0) != 0:
        return None
    rows = constants.get(gather.input[0])
    if rows is None or rows.ndim != 2 or rows.shape[1] != layer.input_size:
        return None
    return rows.astype(layer.dtype)


def save(
    layers: Layer | Frozen[Any] | Mapping[str, Layer | Frozen[Any]],
    path: str | os.PathLike[str],
    *,
    states: bool = False,
    lengths: bool = False,
    embeddings: Mapping[str, ArrayLike] | None = None,
) -> None:
    """Write layers to an ONNX file of exactly this name, as RNN, GRU and LSTM nodes of opset 17.

    Parameters
    ----------
    layers : layer, or mapping of str to layer
        RNN, GRU or LSTM, frozen ones too. Of a mapping each stands by itself in the file, under its name, and all that
        follows has ``NAME.`` in front. One layer by itself has the name "rnn" and nothing in front. The node of its
        k-th layer is called ``NAME`` where it has one, else ``NAME_lK``.
    states : bool
        Whether h0 and, of an LSTM, c0, (L*D,B,H) are inputs. Without them they are zero. hn and cn are always outputs.
    lengths : bool
        Whether lengths (B,), int32, is an input.
    embeddings : mapping of str to array_like (V,I), optional
        By the layers' names: such a layer reads ``ids``, int64, instead of x, through a Gather.

    Raises
    ------
    ValueError, TypeError
        For layers with ``proj_size``, which ONNX does not have, other objects, and embeddings that do not fit.
    OSError
        If the path cannot be written to. A file already there is replaced only when the new one is complete.

    Notes
    -----
    The inputs are x, or ids, laid out as the layer has them, and those above; the outputs y, hn and cn, all laid out as
    the layer has them. Dropout, which acts in training only, is not written. ONNX Runtime runs the file if the layer is
    float32.
    """
    single = not isinstance(layers, Mapping)
    given: Mapping[str, Any] = {"rnn": layers} if single else layers  # type: ignore[assignment]
    problems = Problems(lambda: "save")
    if not given:
        problems.value("no layer", "It needs at least one.")
    if unknown := [name for name in embeddings or {} if name not in given]:
        problems.value(f"an embedding for {unknown[0]!r}", f"The layers are {', '.join(given)}.")
    writer = _Writer(states, lengths)
    for name, one in given.items():
        layer = one._layer if isinstance(one, Frozen) else one
        if not isinstance(layer, (RNN, GRU, LSTM)):
            problems.type(f"{name!r} of type {type(one).__name__}", "It must be an RNN, GRU or LSTM of fastrnn.")
            continue
        if zoneout_of(layer._options) != (0, 0):
            why = "The nodes of ONNX have no zoneout, whose expectation inference takes."
            problems.value(f"{name!r} with zoneout={layer.zoneout}", why)
        if layer._cell().endswith("_norm"):
            problems.value(f"{name!r} with layer_norm=True", "The nodes of ONNX normalise nothing inside.")
            continue
        if layer.heads > 1:
            problems.value(f"{name!r} with heads={layer.heads}", "The nodes of ONNX have full matrices, no heads.")
            continue
        if layer.proj_size:
            problems.value(f"{name!r} with proj_size={layer.proj_size}", "The LSTM of ONNX has no projection.")
            continue
        rows = None
        if name in (embeddings or {}):
            rows = as_real(problems, f"embeddings[{name!r}]", (embeddings or {})[name], layer.dtype)
            if rows is not None and (rows.ndim != 2 or rows.shape[1] != layer.input_size or not len(rows)):
                problems.shape(
                    f"embeddings[{name!r}] with shape {rows.shape}", f"It must be (ids, {layer.input_size})."
                )
                continue
        writer.add(name, "" if single else f"{name}.", layer, rows)
    problems.refuse()
    data = writer.model().SerializeToString()
    with replacing(path) as file:
        file.write(data)


class _Writer:
    """Builds the graph, layer by layer."""

    def __init__(self, states: bool, lengths: bool) -> None:
        self._states, self._lengths = states, lengths
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._stored: dict[str, Any] = {}

    def model(self) -> Any:
        """The model, checked."""
        graph = onnx.helper.make_graph(self._nodes, "fastrnn", self._inputs, self._outputs, list(self._stored.values()))
        opsets = [onnx.helper.make_opsetid("", OPSET)]
        made = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="fastrnn")
        onnx.checker.check_model(made, full_check=True)
        return made

    def _node(self, kind: str, inputs: list[str], outputs: list[str], **given: Any) -> str:
        self._nodes.append(onnx.helper.make_node(kind, inputs, outputs, **given))
        return outputs[0]

    def _store(self, name: str, value: Array) -> str:
        self._stored[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def _value(self, name: str, kind: Any, sizes: list[Any]) -> Any:
        return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)), sizes)

    def add(self, name: str, prefix: str, layer: Layer, rows: Array | None) -> None:
        """Add one layer with its inputs and outputs."""
        L, D, H = layer.num_layers, 1 + layer.bidirectional, layer.hidden_size
        time, batch = f"{prefix}time", f"{prefix}batch"
        order = [batch, time] if layer.batch_first else [time, batch]
        x = f"{prefix}{'x' if rows is None else 'ids'}"
        if rows is None:
            self._inputs.append(self._value(x, layer.dtype, [*order, layer.input_size]))
        else:
            self._inputs.append(self._value(x, np.int64, order))
            x = self._node("Gather", [self._store(f"{prefix}embedding", rows), x], [f"{prefix}features"])
        states = ["h", "c"] if layer._has_cell_state else ["h"]
        starts = [f"{prefix}{s}0" for s in states] if self._states else []
        self._inputs += [self._value(one, layer.dtype, [L * D, batch, H]) for one in starts]
        lens = f"{prefix}lengths" if self._lengths else ""
        if lens:
            self._inputs.append(self._value(lens, np.int32, [batch]))
        if layer.batch_first:
            x = self._node("Transpose", [x], [f"{prefix}time_first"], perm=[1, 0, 2])
        ends: list[list[str]] = []
        for k in range(L):
            begins = [self._part(prefix, one, k, L, D) for one in starts]
            names = [f"{prefix}{s}n{'' if L == 1 else f'_l{k}'}" for s in states]
            x = self._layer(name if L == 1 else f"{name}_l{k}", prefix, layer, k, [x, lens, *begins], names)
            ends.append(names)
        self._node("Transpose" if layer.batch_first else "Identity", [x], [f"{prefix}y"], **_swap(layer.batch_first))
        self._outputs.append(self._value(f"{prefix}y", layer.dtype, [*order, D * H]))
        for s, parts in zip(states, zip(*ends, strict=True), strict=True):
            if L > 1:
                self._node("Concat", list(parts), [f"{prefix}{s}n"], axis=0)
            self._outputs.append(self._value(f"{prefix}{s}n", layer.dtype, [L * D, batch, H]))

    def _part(self, prefix: str, start: str, k: int, L: int, D: int) -> str:
        """The rows of an initial state that are the k-th layer's."""
        if L == 1:
            return start
        bounds = [self._store(f"{prefix}row_{row}", np.array([row])) for row in (k * D, (k + 1) * D)]
        return self._node("Slice", [start, *bounds, self._store(f"{prefix}row_0", np.array([0]))], [f"{start}_l{k}"])

    def _layer(self, name: str, prefix: str, layer: Layer, k: int, given: list[str], ends: list[str]) -> str:
        """One node and what lays its output out as (T,B,D*H)."""
        kind = type(layer).__name__
        x, lens, *begins = given
        weights = [self._store(f"{prefix}{word}_l{k}", value) for word, value in _weights(layer, k).items()]
        options: dict[str, Any] = {"hidden_size": layer.hidden_size}
        options["direction"] = "bidirectional" if layer.bidirectional else "forward"
        if isinstance(layer, GRU):
            options["linear_before_reset"] = int(layer.reset_after)
        options.update(activation_attributes(layer))
        inputs = [x, *weights, *[""] * (3 - len(weights)), lens, *begins]
        if isinstance(layer, LSTM) and layer.peephole:
            peepholes = self._store(f"{prefix}P_l{k}", _peepholes(layer, k))
            inputs += [*[""] * (7 - len(inputs)), peepholes]
        while not inputs[-1]:
            inputs.pop()
        self._nodes.append(onnx.helper.make_node(kind, inputs, [f"{prefix}Y_l{k}", *ends], name=name, **options))
        if not layer.bidirectional:
            axis = self._store(f"{prefix}direction_axis", np.array([1]))
            return self._node("Squeeze", [f"{prefix}Y_l{k}", axis], [f"{prefix}y_l{k}"])
        beside = self._node("Transpose", [f"{prefix}Y_l{k}"], [f"{prefix}beside_l{k}"], perm=[0, 2, 1, 3])
        joined = self._store(f"{prefix}joined", np.array([0, 0, 2 * layer.hidden_size]))
        return self._node("Reshape", [beside, joined], [f"{prefix}y_l{k}"])


def _swap(batch_first: bool) -> dict[str, Any]:
    return {"perm": [1, 0, 2]} if batch_first else {}


def _weights(layer: Layer, k: int) -> dict[str, Array]:
    """W, R and, where there are biases, B of one layer, as ONNX has them."""
    parameters, order = layer.parameters(), list(ONNX_GATES[type(layer).__name__])

    def stacked(name: str) -> Array:
        sides = [f"{name}_l{k}", f"{name}_l{k}_reverse"][: 1 + layer.bidirectional]
        arrays = [parameters[side].reshape(len(order), layer.hidden_size, -1)[order] for side in sides]
        return np.stack([a.reshape(parameters[side].shape) for a, side in zip(arrays, sides, strict=True)])

    found = {"W": stacked("weight_ih"), "R": stacked("weight_hh")}
    if layer.bias:
        found["B"] = np.concatenate([stacked("bias_ih"), stacked("bias_hh")], 1)
    return found


def _peepholes(layer: LSTM, k: int) -> Array:
    """P of one layer, i o f, from i f o."""
    sides = [f"weight_peephole_l{k}", f"weight_peephole_l{k}_reverse"][: 1 + layer.bidirectional]
    return np.stack([layer.parameters()[side][[0, 2, 1]].reshape(-1) for side in sides])
