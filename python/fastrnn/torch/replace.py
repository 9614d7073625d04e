"""accelerate and restore: the layers of a model change their class, and nothing else about them changes."""

import copy
import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from ..frozen import Weights, Words, as_given, read_words
from . import episodes, quantized
from .bits import Bits
from .cells import GRUCell, LSTMCell, RNNCell
from .guards import computes_on
from .identity import give_back, is_dynamic, obstacle, original_of, take
from .layers import GRU, LSTM, RNN

_OURS = (LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell)
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass
class Report:
    """What `accelerate` did; as a context manager it undoes it at the end of the block.

    Attributes
    ----------
    model : Module
        The accelerated model.
    replaced : dict of str to str
        Names of the modules that fastrnn now computes, "" for the model itself, and what they are.
    already : dict of str to str
        Names of the modules that fastrnn computed before, and what they are.
    skipped : dict of str to str
        Names of recurrent modules that were left alone, and why.
    sequences : dict of str to str
        Names of modules of sb3-contrib and torchrl whose sequences run in one call even where episodes start inside,
        and what they are.
    full : dict of str to str
        Names of the modules whose weights stay float32 or what they are, although `weights` was given, and why.
    """

    model: nn.Module
    replaced: dict[str, str] = field(default_factory=dict)
    already: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    sequences: dict[str, str] = field(default_factory=dict)
    full: dict[str, str] = field(default_factory=dict)
    _changed: list[nn.Module] = field(default_factory=list, repr=False)
    _bits_before: list[tuple[Any, Bits | None]] = field(default_factory=list, repr=False)

    def __str__(self) -> str:
        ours = self.replaced | self.already
        ours |= {name: f"{ours[name]}, weights in full: {why}" for name, why in self.full.items()}
        lines = [f"fastrnn runs {len(ours)} of {len(ours) + len(self.skipped)} recurrent modules"]
        width = max((len(name or "(the model)") for name in (*ours, *self.sequences, *self.skipped)), default=0)
        lines += [f"  {name or '(the model)':{width}}  {what}" for name, what in (ours | self.sequences).items()]
        lines += [f"  {name or '(the model)':{width}}  skipped: {why}" for name, why in self.skipped.items()]
        if len(lines) == 1:
            kind = type(self.model).__name__
            lines.append(
                f"  {kind}.modules() has none: a loss or a trainer may keep its network elsewhere; accelerate that"
            )
        return "\n".join(lines)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for module in self._changed:
            _restore(module)
        for module, bits in self._bits_before:
            module._bits = bits


def accelerate(
    model: nn.Module,
    *,
    inplace: bool = True,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    fallback: bool = False,
    weights: Weights = None,
) -> Report:
    """Let fastrnn compute every nn.LSTM, GRU, RNN, LSTMCell, GRUCell and RNNCell of a model.

    LSTM and GRU modules that torch.ao has quantized dynamically to int8 are computed with the integers that they hold.
    The modules stay the same objects with the same parameters, buffers, hooks and mode; only their class changes. So
    optimizers, tied weights and wrappers such as DistributedDataParallel see no difference.

    Parameters
    ----------
    model : Module
        A model that holds such modules, or one of them.
    inplace : bool
        Whether to change the model itself, or a deep copy: ``report.model``.
    include, exclude : str or iterable of str, optional
        Patterns, as in a shell, of the names of modules to take, and of those to leave out; by default all are taken.
    fallback : bool
        Whether torch.nn's own code runs where fastrnn cannot compute with an input's device, instead of an error.
    weights : "int8", "bfloat16", "float32" or mapping, optional
        What modules compute with in eval mode where no gradient is wanted, as `fastrnn.LSTM.freeze` has it: packed at
        the first such call, and again when a parameter's version counter or address has changed or an optimizer has
        stepped. Writing through ``parameter.data`` or a NumPy view changes neither: give weights once more. Training,
        and whatever wants gradients, computes in float32. Parameters, state_dict and pickles hold float32 as before.
        None leaves each module with what it has; "float32" and `restore` take it away.

    Returns
    -------
    Report
        Print it; use it as a context manager to restore the model at the end of a block.

    Raises
    ------
    TypeError
        If model is no Module.
    ValueError
        If a pattern of include or exclude fits no module of the model, or for other words in weights.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate takes a torch.nn.Module, got {type(model).__name__}")
    full = isinstance(weights, str) and weights == "float32"
    words = None if full else read_words(lambda: "accelerate", weights)
    report = Report(model if inplace else copy.deepcopy(model))
    modules = dict(report.model.named_modules())
    taken = _matching("include", include, modules) if include is not None else set(modules)
    left = _matching("exclude", exclude, modules) if exclude is not None else set()
    for name, module in modules.items():
        chosen = name in taken and name not in left
        if isinstance(module, _OURS):
            report.already[name] = _described(module)
            if fallback and chosen:
                module._fallback = True
            if full and chosen:
                report._bits_before.append((module, module._bits))
                module._bits = None
            if words and chosen:
                _keep_in_bits(report, name, module, words, report.already)
            continue
        if quantized.is_taken(module):
            report.already[name] = _described(module)
            continue
        if not _is_recurrent(module):
            continue
        why = ("excluded" if name in left else "not included") if not chosen else _obstacle(module, fallback)
        if why:
            report.skipped[name] = why
            continue
        report.replaced[name] = _described(module)
        report._changed.append(module)
        if quantized.is_quantized_layer(module):
            quantized.take_quantized(module)
            report.replaced[name] += ", of torch.ao, its int8 as it is"
            continue
        take(module)
        if fallback:
            module._fallback = True
        if words:
            _keep_in_bits(report, name, module, words, report.replaced)
    for name, module in modules.items():
        if episodes.has_sequences(module):
            _take_sequences(report, name, module, name in left)
    return report


def _keep_in_bits(report: Report, name: str, module: Any, words: Words, listed: dict[str, str]) -> None:
    """Let a module compute with weights in fewer bits, or say why it does not."""
    why = _only_full(module, words)
    if why:
        report.full[name] = why
        return
    if module not in report._changed:
        report._bits_before.append((module, module._bits))
    module._bits = Bits(words)
    listed[name] += f", weights={as_given(words)!r} in inference"


def _only_full(module: nn.Module, words: Words) -> str | None:
    if getattr(module, "heads", 1) > 1:
        return "those of heads are not kept in fewer bits"
    if is_dynamic(type(module)):
        return "a parametrization or FSDP makes them anew in every call"
    for parameter in module.parameters():
        if parameter.device.type != "cpu":
            return f"they are on {parameter.device}, and fewer bits are for the CPU"
        if parameter.is_inference():
            return "they were made in inference mode, where PyTorch counts no changes"
        if parameter.dtype != torch.float32:
            return f"they are {parameter.dtype}, and only float32 ones are kept in {' and '.join(dict.fromkeys(words))}"
    return None


def _take_sequences(report: Report, name: str, module: nn.Module, excluded: bool) -> None:
    why = "excluded" if excluded else episodes.obstacle(module)
    if why:
        report.skipped[name] = why
        return
    if episodes.take_sequences(module):
        report._changed.append(module)
    report.sequences[name] = f"{type(module).__name__}: one call where episodes start inside a sequence"


def restore(model: nn.Module) -> nn.Module:
    """Let torch.nn compute all of a model's recurrent modules again, those too that were built from fastrnn's classes.

    Returns
    -------
    The model itself.

    Raises
    ------
    ValueError
        If a module has options that torch.nn does not have, such as ``peephole``; nothing is changed then.
    """
    for name, module in model.named_modules():
        if isinstance(module, (LSTM, GRU, RNN)) and module._own:
            what = f"{name or 'the model'}, which has {module._own}"
            raise ValueError(f"restore cannot let torch.nn compute {what}: torch.nn has no such options")
    for module in model.modules():
        _restore(module)
    return model


def _restore(module: nn.Module) -> None:
    give_back(module)
    episodes.give_back_sequences(module)
    quantized.give_back_quantized(module)


def _described(module: nn.Module) -> str:
    return f"{type(module).__name__}({module.extra_repr()})"


def _is_recurrent(module: nn.Module) -> bool:
    """Whether a reader of the report would expect it there."""
    scripted = getattr(module, "original_name", None)
    return isinstance(module, (nn.RNNBase, nn.RNNCellBase)) or scripted in _NAMES or _is_quantized(module)


_NAMES = {kind.__name__ for kind in _OURS}


def _is_quantized(module: nn.Module) -> bool:
    return any(
        kind.__module__.startswith(("torch.ao.nn.quantiz", "torchao.")) and kind.__name__ in _NAMES
        for kind in type(module).__mro__
    )


def _obstacle(module: nn.Module, fallback: bool) -> str | None:
    """Return why a module cannot be replaced."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "it is compiled by TorchScript, which does not know fastrnn: accelerate the model that it was made of"
    if quantized.is_quantized_layer(module):
        return quantized.obstacle(module)
    if _is_quantized(module):
        return "it is quantized: accelerate the model that it was made of, in float32"
    if original_of(kind) is None:
        return f"{kind.__name__} is none of {', '.join(sorted(_NAMES))} and not derived from one of them"
    if not is_dynamic(kind):
        why = obstacle(kind)
        if why:
            return why
    if "forward" in vars(module):
        return "its forward was replaced"
    for parameter in module.parameters():
        if parameter.dtype not in _DTYPES:
            return f"its parameters are {parameter.dtype}"
        if not computes_on(parameter.device) and not fallback:
            return f"its parameters are on {parameter.device}; fallback=True takes it for when they are on the CPU"
    return None


def _matching(name: str, patterns: str | Iterable[str], modules: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        names = {n for n in modules if fnmatch.fnmatchcase(n, pattern)}
        if not names:
            raise ValueError(f"accelerate got {name}={pattern!r}, which fits no module of the model")
        found |= names
    return found


__all__ = ["Report", "accelerate", "restore"]
