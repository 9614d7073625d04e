"""Sessions in which fastrnn computes the recurrent nodes of a model, and ONNX Runtime all the rest."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..frozen import Weights, read_words
from ..storage import FileError
from ..threads import get_num_threads
from . import types
from .choosing import Report, Scope, choose
from .constants import value_of
from .cutting import Cut
from .reading import read_model, readable, serialised
from .steps import Plan, Run, Segment
from .types import CutError


class Argument(NamedTuple):
    """An input or output of a session, as onnxruntime's NodeArg: its name, type and sizes."""

    name: str
    type: str
    shape: list[int | str | None] | None


def accelerate(
    model: Any,
    *,
    providers: Sequence[Any] = ("CPUExecutionProvider",),
    session_options: Any = None,
    weights: Weights = None,
) -> "Session":
    """Return a session that stands in for onnxruntime.InferenceSession, its recurrent nodes computed by fastrnn.

    The graph is cut at the RNN, GRU and LSTM nodes: ONNX Runtime runs the pieces between them. Nodes inside If, Loop,
    Scan and the model's own functions are found as well; their weights may be initializers, Constants, simple operators
    of them (Transpose, Unsqueeze, Concat and others), or come with the call. Nodes that only move axes beside a
    recurrent node cost nothing; if all pieces are of simple nodes, NumPy computes them where arrays are small, which
    takes less than calls of ONNX Runtime. What fastrnn cannot compute is left to it: ``print(session.report)``.

    Parameters
    ----------
    model : ModelProto, str, PathLike or bytes
        A model, the file of one, or what stands in such a file. Data in other files have to lie beside the file.
    providers : sequence
        Of ONNX Runtime, for the pieces that it runs.
    session_options : onnxruntime.SessionOptions, optional
        For those pieces. By default they use as many threads as fastrnn does, which do not spin between the pieces:
        spinning threads of one library keep the processor from the other's.
    weights : "int8", "bfloat16" or mapping, optional
        What to keep the weights of the nodes as, as `fastrnn.LSTM.freeze` has it, where they are float32 and constant.
        The others stay as they are, and the report says so.

    Returns
    -------
    Session
        With ``run``, ``get_inputs`` and ``get_outputs``. Several threads may use it at once.

    Raises
    ------
    FileError
        If it is no ONNX model, one that contradicts itself, or one that ONNX Runtime refuses, to which it goes whole
        where fastrnn runs none of its nodes; ONNX Runtime's own error is then the cause.
    TypeError
        If model is something else.
    ValueError
        For other words in weights.
    OSError
        If the file cannot be read.
    ImportError
        Without onnxruntime.

    Notes
    -----
    Without `weights` the results are ONNX Runtime's to 1e-5, also where it departs from the text of ONNX: the
    final states of sequences of length 0 are zero. Where ONNX Runtime computes nothing (float64,
    ``layout=1``, no sequence at all) they follow the text.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"accelerate needs onnxruntime ({error}): pip install 'fastrnn[onnx]'") from error
    words = read_words(lambda: "accelerate", weights)
    proto, name = read_model(model, "accelerate")
    if session_options is None:
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = get_num_threads()
        session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    def make_session(data: bytes) -> Any:
        return onnxruntime.InferenceSession(data, session_options, providers=list(providers))

    with readable(name):
        scope, report = choose(proto, name, words)
        return Session(proto, name, scope, report, make_session)


class Session:
    """A model ready to run; made by `accelerate`.

    Attributes
    ----------
    report : Report
        Which recurrent nodes fastrnn computes, which it does not, and why.
    """

    def __init__(
        self, model: Any, name: str, scope: Scope, report: Report, make_session: Callable[[bytes], Any]
    ) -> None:
        self.report = report
        self._pieces: list[Any] = []

        def make(data: bytes) -> Any:
            self._pieces.append(make_session(data))
            return self._pieces[-1]

        self._plan = self._cut(model, name, scope, make) if scope.any_taken() else self._whole(model, name, make)
        report.sessions = len(self._pieces)
        graph, stored = model.graph, {tensor.name: tensor for tensor in model.graph.initializer}
        self._defaults = {i.name: value_of(stored[i.name], name) for i in graph.input if i.name in stored}
        if model.ir_version < 4:  # where initializers are constants, although inputs of their names are declared
            self._defaults = {}
        self._owned = frozenset(map(id, self._defaults.values()))
        self._inputs = [_argument(i.name, i.type) for i in graph.input if i.name not in stored]
        given = [i for i in graph.input if i.name not in stored or i.name in self._defaults]
        self._expected = {i.name: _Expected(i.type) for i in given}
        self._outputs = [_argument(o.name, self._types.get(o.name)) for o in graph.output]
        self._names = [o.name for o in graph.output]

    def _cut(self, model: Any, name: str, scope: Scope, make: Callable[[bytes], Any]) -> Plan:
        try:
            cut = Cut(scope, model, make, {})
            plan = cut.plan()
        except CutError as error:
            self._pieces.clear()
            self.report.left |= dict.fromkeys(self.report.taken, str(error))
            self.report.taken.clear()
            return self._whole(model, name, make, f"; the graph was not cut, as {error}")
        self._types = {one: cut.types.get(one) for one in plan.outputs}
        self._types |= {o.name: o.type for o in model.graph.output if types.is_complete(o.type)}
        return plan

    def _whole(self, model: Any, name: str, make: Callable[[bytes], Any], why: str = "") -> Plan:
        """Everything in one session of ONNX Runtime; `why` ends the sentence of its refusal."""
        data = serialised(model, name)
        try:
            session = make(data)
        except Exception as error:
            if not types.is_onnxruntimes(error):
                raise
            raise FileError(f"{name}: ONNX Runtime refuses it: {error}{why}") from error
        self._types = {o.name: types.from_words(o.type, o.shape) for o in session.get_outputs()}
        names = [value.name for value in model.graph.input]
        outputs = [value.name for value in model.graph.output]
        stored = {tensor.name for tensor in model.graph.initializer}
        reads = [name for name in names if model.ir_version >= 4 or name not in stored]
        return Plan(names, [], outputs, {}, [Segment(session, reads, outputs)])

    def get_inputs(self) -> list[Argument]:
        """The inputs that a call has to give: name, type and shape of each."""
        return list(self._inputs)

    def get_outputs(self) -> list[Argument]:
        """The outputs: name, type and shape of each."""
        return list(self._outputs)

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: Any = None,
        *,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> list[Any]:
        """Compute outputs.

        Parameters
        ----------
        output_names : sequence of str or None
            Which, in which order; None or none: all, as in ONNX Runtime.
        input_feed : mapping
            An array, or a list of arrays for a sequence, for each input by name.
        run_options : onnxruntime.RunOptions, optional
            For the pieces that ONNX Runtime runs.
        progress : callable, optional
            Called as ``progress(node, done, steps)`` with the name of a recurrent node, the time steps it has done and
            all it has to do: at its end, and if it runs forwards on a long sequence also on the way.

        Returns
        -------
        list of array

        Raises
        ------
        ValueError, TypeError
            For names that the model does not have, inputs that are missing, and arrays that do not fit.
        """
        wanted = output_names or self._names
        if output_names and (unknown := [name for name in wanted if name not in self._names]):
            raise ValueError(f"run got the output {unknown[0]!r}; the model's are {', '.join(self._names)}.")
        env = dict(self._defaults)
        for name, value in input_feed.items():
            env[name] = self._read(name, value)
        if len(env) < len(self._expected):
            missing = [one.name for one in self._inputs if one.name not in env]
            raise ValueError(f"run got no input {', '.join(missing)}; the model's are {', '.join(self._expected)}.")
        with np.errstate(all="ignore"):  # NumPy warns of infinities and NaN, ONNX Runtime does not
            self._plan(env, Run(run_options, progress, self._owned))
        taken = {id(_root(value)) for value in input_feed.values()}
        return [_own(env[name], taken) for name in wanted]

    def _read(self, name: str, value: Any) -> Any:
        """Return an input as the steps take it; refuse what the model does not declare."""
        expected = self._expected.get(name)
        if expected is None:
            raise ValueError(f"run got the input {name!r}; the model's are {', '.join(self._expected)}.")
        if type(value) is np.ndarray and value.shape == expected.shape and value.dtype == expected.dtype:
            return value
        if not expected.is_tensor:
            return value
        array = value if type(value) is np.ndarray else np.asarray(value)
        if expected.dtype is not None and array.dtype != expected.dtype:
            raise TypeError(f"run got the input {name!r} with dtype {array.dtype}; the model's is {expected.dtype}.")
        if expected.sizes is not None:
            fits = array.ndim == len(expected.sizes)
            for axis, size in expected.fixed if fits else ():
                fits = fits and array.shape[axis] == size
            if not fits:
                text = f"run got the input {name!r} with shape {array.shape}; the model's is {expected.sizes}."
                raise ValueError(text)
        return array


def _root(value: Any) -> Any:
    """What holds the memory of an array."""
    return value if type(value) is not np.ndarray or value.base is None else value.base


def _own(value: Any, taken: set[int]) -> Any:
    """Return an output that shares no memory with an input, a constant or another output, in C order."""
    if type(value) is not np.ndarray:
        return value
    root = id(_root(value))
    if root in taken or not value.flags.carray:
        return np.array(value, order="C")
    taken.add(root)
    return value


class _Expected:
    """What an input has to be."""

    def __init__(self, kind: Any) -> None:
        self.is_tensor = types.element_of(kind) is not None
        self.dtype = types.dtype_of(kind)
        self.sizes = types.sizes_of(kind)
        # no array's if a size is open
        self.shape = tuple(self.sizes) if self.sizes and self.dtype is not None else None
        self.fixed = [(axis, size) for axis, size in enumerate(self.sizes or []) if isinstance(size, int)]


def _argument(name: str, kind: Any) -> Argument:
    return Argument(name, types.to_words(kind), types.sizes_of(kind))
