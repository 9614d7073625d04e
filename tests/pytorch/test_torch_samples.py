"""fastrnn.torch's layers and cells with the samples and the errors that PyTorch tests its own with."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.nn.utils.rnn import PackedSequence  # noqa: E402

import fastrnn.torch as ft  # noqa: E402
from torch_support import assert_alike, flat  # noqa: E402

LAYERS = ("LSTM", "GRU", "RNN")
CELLS = ("LSTMCell", "GRUCell", "RNNCell")
# PyTorch's notes on its own slower path.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")


def samples_of_pytorch() -> list[Any]:
    """How PyTorch itself tests these classes."""
    from torch.testing._internal.common_modules import module_db

    names = {f"nn.{kind}" for kind in (*LAYERS, *CELLS)}
    return [info for info in module_db if info.name in names]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_with_the_samples_that_pytorch_tests_its_own_with(training: bool, dtype: Any) -> None:
    pytest.importorskip("expecttest", reason="PyTorch's own test tools need expecttest")
    count = 0
    for info in samples_of_pytorch():
        samples = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training)
        for sample in samples:
            made = []
            for module in (getattr(ft, info.name[3:]), info.module_cls):
                torch.manual_seed(0)
                layer = module(*sample.constructor_input.args, **sample.constructor_input.kwargs)
                made.append(layer.to(dtype).train(training))
            ours, theirs = (m(*sample.forward_input.args, **sample.forward_input.kwargs) for m in made)
            if isinstance(ours[0] if isinstance(ours, tuple) else ours, PackedSequence):
                assert torch.equal(ours[0].batch_sizes, theirs[0].batch_sizes)
            assert_alike(flat(ours), flat(theirs))
            count += 1
    assert count > 30


def test_with_the_errors_that_pytorch_expects_of_its_own() -> None:
    pytest.importorskip("expecttest", reason="PyTorch's own test tools need expecttest")
    count = 0
    for info in samples_of_pytorch():
        find = info.module_error_inputs_func
        for error in find(info, device="cpu", dtype=torch.float64, requires_grad=False, training=True):
            sample = error.module_error_input
            arguments = sample.constructor_input
            kind = getattr(ft, info.name[3:])
            if "CONSTRUCTION" in error.error_on.name:
                with pytest.raises(error.error_type, match=error.error_regex):
                    kind(*arguments.args, **arguments.kwargs)
            else:
                module = kind(*arguments.args, **arguments.kwargs).double()
                with pytest.raises(error.error_type, match=error.error_regex):
                    module(*sample.forward_input.args, **sample.forward_input.kwargs)
            count += 1
    assert count > 20
