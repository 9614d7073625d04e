"""The least time that a call can take on this machine, from the measured ceilings.

Per step, every product counts with the FMA peak. The recurrent product also has to read its weights: it takes the
larger of its time at the peak and bytes(weight_hh) over the read bandwidth of the cache level that the part of one
thread fits in, since hidden units (or directions) can be shared out. A step of a frozen layer reads weight_ih from
cache as well, and both matrices make up its working set; a longer sequence reads weight_ih once for many rows.

After the product comes the cell's pointwise epilogue: a number of vector instructions per N units of a row, two of them
a cycle, as many as there are FMA instructions a cycle at the peak. So one such instruction costs what 2 N operations
of the peak cost, and N cancels.

With weights in fewer bits products count with the peak of such products, and weights with their bytes; the rest is
float32. What multiplies x and h as sums of two bfloat16, as is done with AMX here, can reach half of that peak.

Training adds the product for dh, bounded like the recurrent one, the three products for dx and the weights' gradients
at the peak, and the backward epilogue. Threads share everything: the peak is that of all of them together.
"""

import numpy as np

from ..grid.shapes import GATES, Point
from .ceilings import Ceilings

# Vector instructions per N units of a row, without loads and stores, counted in cells.hpp and vec.hpp of csrc/kernels
# for AVX-512 in float32: a sigmoid takes 20, a tanh 23, of which the estimate of a reciprocal is two.
FORWARD = {"LSTM": 109, "GRU": 66, "RNN": 23}
BACKWARD = {"LSTM": 45, "GRU": 17, "RNN": 4}


BYTES = {"int8": 1, "bfloat16": 2}


def bound(point: Point, ceilings: Ceilings, peak: float, weights: str | None = None) -> float:
    """Seconds of a call of the point at the roofline.

    Parameters
    ----------
    ceilings : Ceilings
        Of the point's number of threads; read bandwidths are taken from it.
    peak : float
        FMA operations per second of all threads, of the point's dtype.
    weights : {"int8", "bfloat16"}, optional
        What the matrices are kept as, if it is not the dtype.
    """
    item = np.dtype(point.dtype).itemsize if weights is None else BYTES[weights]
    products = peak if weights is None else peak * ceilings.peak[weights] / ceilings.peak[point.dtype]
    training = point.mode == "training"
    gate_rows = GATES[point.cell] * point.H
    rows = point.rows.astype(float)
    epilogue = FORWARD[point.cell] + (BACKWARD[point.cell] if training else 0)

    seconds = 0.0
    for size in point.input_sizes:
        input_bytes, recurrent_bytes = (point.directions * gate_rows * n * item for n in (size, point.H))
        # T = 1: each layer's weights are read in turn, and all of them together have to stay in the cache
        resident = _all_weights(point) * item if point.T == 1 else recurrent_bytes
        rate = point.threads * ceilings.read_bandwidth(resident / point.threads)
        at_peak = [2 * point.directions * gate_rows * n * rows / products for n in (size, point.H)]
        recurrent = np.maximum(at_peak[1], recurrent_bytes / rate)
        inputs = np.maximum(at_peak[0], input_bytes / rate) if point.T == 1 else at_peak[0]
        pointwise = 2 * epilogue * point.directions * point.H * rows / peak
        others = 2 * at_peak[0] + at_peak[1] if training else 0.0
        seconds += float(np.sum(inputs + (1 + training) * recurrent + others + pointwise))
    return seconds


def _all_weights(point: Point) -> int:
    """Elements of all weight matrices."""
    return sum(GATES[point.cell] * point.H * (size + point.H) * point.directions for size in point.input_sizes)
