"""What the programs of this folder share: options, both sides timed by turns, and ONNX graphs written node by node."""

import argparse
import time

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import fastrnn


def quick(text):
    """Read the command line and return whether it has --quick; fastrnn gets one thread, as the other side has."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less data, and a few turns of each side")
    fastrnn.set_num_threads(1)
    return parser.parse_args().quick


def by_turns(name, sides, turns, within=1e-5):
    """Print the median milliseconds of each side, the first one's over each other's, and how far results differ.

    `sides` maps names to functions without arguments, each of which returns arrays that all have to be equal up to
    `within`. Every turn calls each of them once.
    """
    wanted = next(iter(sides.values()))()
    differences = {}
    for side, call in sides.items():
        pairs = list(zip(wanted, call(), strict=True))
        for one, two in pairs:
            np.testing.assert_allclose(two, one, rtol=within, atol=within, err_msg=side)
        differences[side] = max(float(np.abs(one - two).max()) for one, two in pairs)
    ms = dict(zip(sides, _medians(list(sides.values()), turns), strict=True))
    first, *others = ms
    print(f"{name}: {first} {ms[first]:.2f} ms")
    for side in others:
        print(f"  {side}: {ms[side]:.2f} ms, ratio {ms[first] / ms[side]:.2f}, equal to {differences[side]:.1e}")


def median_ms(call, turns):
    """Return the median milliseconds of calls."""
    return _medians([call], turns)[0]


def _medians(calls, turns):
    """The median milliseconds of each, called in turn."""
    seconds = np.empty((turns, len(calls)))
    for row in seconds:
        for k, call in enumerate(calls):
            begin = time.perf_counter()
            call()
            row[k] = time.perf_counter() - begin
    return 1e3 * np.median(seconds, axis=0)


class Graph:
    """A graph in the making: random weights, and nodes that follow each other; `end` is added to all its names."""

    def __init__(self, rng, end=""):
        self._rng, self._end, self._nodes, self._stored = rng, end, [], []

    def constant(self, name, value):
        """Store an array; return its name."""
        self._stored.append(numpy_helper.from_array(np.asarray(value), name + self._end))
        return name + self._end

    def weight(self, name, *shape, fan):
        """Store numbers drawn as PyTorch draws them for `fan` inputs; return their name."""
        bound = fan**-0.5
        return self.constant(name, self._rng.uniform(-bound, bound, shape).astype(np.float32))

    def node(self, kind, inputs, outputs, name=None, **options):
        """Add a node; return the name of its first output."""
        names = [outputs + self._end] if isinstance(outputs, str) else [one + self._end for one in outputs]
        self._nodes.append(helper.make_node(kind, inputs, names, name=name, **options))
        return names[0]

    def lstm(self, name, x, size, hidden, states=(), **options):
        """Add an LSTM named `name`, with random weights; return the names of Y, Y_h and Y_c."""
        weights = [self.weight(f"{name}_W", 1, 4 * hidden, size, fan=hidden)]
        weights += [self.weight(f"{name}_R", 1, 4 * hidden, hidden, fan=hidden)]
        weights += [self.weight(f"{name}_B", 1, 8 * hidden, fan=hidden)]
        outputs = [f"{name}_Y", f"{name}_h", f"{name}_c"]
        given = [x, *weights, *(["", *states] if states else [])]
        self.node("LSTM", given, outputs, name + self._end, hidden_size=hidden, **options)
        return [one + self._end for one in outputs]

    def graph(self, inputs, outputs):
        """Return the graph; inputs and outputs map names to the shapes of floats, or to "int64"."""
        return helper.make_graph(self._nodes, "net" + self._end, _values(inputs), _values(outputs), self._stored)

    def model(self, inputs, outputs):
        """Return the graph as a checked model."""
        opsets = [helper.make_opsetid("", 17)]
        made = helper.make_model(self.graph(inputs, outputs), opset_imports=opsets, ir_version=8)
        onnx.checker.check_model(made)
        return made


def _values(named):
    return [
        helper.make_tensor_value_info(name, TensorProto.INT64, [])
        if shape == "int64"
        else helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in named.items()
    ]


def session(model):
    """Return ONNX Runtime's session of a model, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)
