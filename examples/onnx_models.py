"""ONNX models in ONNX Runtime and in a session of `fastrnn.onnx.accelerate`, turn by turn.

The first is a tagger that PyTorch exported: two layers of a GRU in both directions between two products. The second is
a voice detector written by hand, which has one LSTM for 8 kHz and one for 16, each in a branch of an If, and goes
through a stream window by window with its state. Both sides compute the same, and the program shows their times.

    python examples/onnx_models.py [--quick] [--threads N] [--plot FILE.png]
"""

import argparse
import time
import warnings

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import fastrnn
from fastrnn.lm.pictures import require_matplotlib
from fastrnn.onnx import accelerate

T, B, FEATURES, HIDDEN = 100, 4, 40, 128
STATE = [1, 1, HIDDEN]


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.read_in = nn.Linear(FEATURES, HIDDEN)
        self.recurrent = nn.GRU(HIDDEN, HIDDEN, num_layers=2, bidirectional=True)
        self.read_out = nn.Linear(2 * HIDDEN, 10)

    def forward(self, x):
        return self.read_out(self.recurrent(torch.relu(self.read_in(x)))[0])


def tagger():
    """Return the exported model, and one input."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about PyTorch itself
        program = torch.onnx.export(Tagger().eval(), (torch.randn(T, B, FEATURES),), dynamo=True, verbose=False)
    model = program.model_proto
    x = np.random.default_rng(0).standard_normal((T, B, FEATURES), dtype=np.float32)
    return model, [{model.graph.input[0].name: x}]


def floats(name, shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def branch(rate, window, rng):
    """Return the detector for one rate: a window of samples (B,window) and the state in, a probability out."""
    end = f"_{rate}"
    weights = {
        "encoder": rng.standard_normal((window, HIDDEN)) / window**0.5,
        "W": rng.uniform(-0.1, 0.1, (1, 4 * HIDDEN, HIDDEN)),
        "R": rng.uniform(-0.1, 0.1, (1, 4 * HIDDEN, HIDDEN)),
        "B": rng.uniform(-0.1, 0.1, (1, 8 * HIDDEN)),
        "read_out": rng.standard_normal((HIDDEN, 1)) / HIDDEN**0.5,
    }
    stored = [numpy_helper.from_array(value.astype(np.float32), name + end) for name, value in weights.items()]
    stored.append(numpy_helper.from_array(np.array([0]), "first" + end))

    def node(kind, inputs, output, **options):
        return helper.make_node(kind, inputs, [output + end], **options)

    names = [name + end for name in ("steps", "W", "R", "B")]
    finals = [f"{name}{end}" for name in ("Y", "hn", "cn")]
    nodes = [
        node("MatMul", ["samples", "encoder" + end], "encoded"),
        node("Relu", ["encoded" + end], "features"),
        node("Unsqueeze", ["features" + end, "first" + end], "steps"),
        helper.make_node("LSTM", [*names, "", "h", "c"], finals, name=f"lstm{end}", hidden_size=HIDDEN),
        node("Squeeze", ["hn" + end, "first" + end], "last"),
        node("MatMul", ["last" + end, "read_out" + end], "score"),
        node("Sigmoid", ["score" + end], "probability"),
    ]
    outputs = [floats("probability" + end, [1, 1]), floats(finals[1], STATE), floats(finals[2], STATE)]
    return helper.make_graph(nodes, f"detector{end}", [], outputs, stored)


def detector():
    """Return the model with both branches, and the windows of a stream at 16 kHz."""
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("Equal", ["rate", "sixteen"], ["is_fast"]),
        helper.make_node(
            "If",
            ["is_fast"],
            ["probability", "hn", "cn"],
            name="by_rate",
            then_branch=branch(16000, 512, rng),
            else_branch=branch(8000, 256, rng),
        ),
    ]
    rate = helper.make_tensor_value_info("rate", TensorProto.INT64, [])
    inputs = [floats("samples", [1, "window"]), floats("h", STATE), floats("c", STATE), rate]
    outputs = [floats("probability", [1, 1]), floats("hn", STATE), floats("cn", STATE)]
    sixteen = numpy_helper.from_array(np.array(16000), "sixteen")
    graph = helper.make_graph(nodes, "detector", inputs, outputs, [sixteen])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    windows = rng.standard_normal((64, 1, 512), dtype=np.float32)
    return model, [{"samples": window, "rate": np.array(16000)} for window in windows]


def run(session, feeds):
    """Return the first output for each of the feeds, the states carried on, and the seconds that each took."""
    state = {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs() if i.name in ("h", "c")}
    outputs, seconds = [], []
    for feed in feeds:
        begin = time.perf_counter()
        y, *ends = session.run(None, {**feed, **state})
        seconds.append(time.perf_counter() - begin)
        outputs.append(y)
        state = dict(zip(state, ends, strict=True))
    return np.stack(outputs), seconds


def compare(name, model, feeds, threads, rounds):
    """Return the median microseconds of a call of ONNX Runtime and of fastrnn, measured by turns."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    theirs = onnxruntime.InferenceSession(model.SerializeToString(), options)
    ours = accelerate(model)
    print(f"{name}: {ours.report}")
    seconds = np.empty((2, rounds, len(feeds)))
    for k in range(-2, rounds):  # two to warm up
        found = [None, None]
        for i in (0, 1) if k % 2 else (1, 0):
            found[i], seconds[i, k] = run((theirs, ours)[i], feeds)
        assert np.allclose(found[0], found[1], rtol=1e-5, atol=1e-5)
    difference = np.abs(found[0] - found[1]).max()
    us = np.median(seconds, axis=(1, 2)) * 1e6
    print(f"  outputs differ by at most {difference:.1e}")
    print(f"  {name}: ONNX Runtime {us[0]:,.1f} us, fastrnn {us[1]:,.1f} us, ratio {us[0] / us[1]:.2f}")
    return us


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="time a few calls")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the times (needs matplotlib)")
    parser.add_argument("--threads", metavar="N", type=int, default=1, help="threads of both (%(default)s)")
    arguments = parser.parse_args()
    if arguments.plot:
        require_matplotlib()
    fastrnn.set_num_threads(arguments.threads)
    rounds = 5 if arguments.quick else 300
    models = {"tagger": tagger(), "detector": detector()}
    times = {name: compare(name, *model, arguments.threads, rounds) for name, model in models.items()}
    if arguments.plot:
        draw(arguments.plot, times)


def draw(path, times):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.5), layout="constrained")
    for axis, (name, us) in zip(figure.subplots(1, 2), times.items(), strict=True):
        axis.barh(["fastrnn", "ONNX Runtime"], us[::-1], color=["#0072B2", "#D55E00"])
        axis.set(title=name, xlabel="microseconds a call")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
