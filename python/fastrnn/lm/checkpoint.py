"""How far a training has come, and the file from which it goes on to the same bits as if it had never stopped."""

import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import storage
from ..kit.optimizers import SGD, Adam
from ..results import LSTMState
from ..storage import FileError
from .model import LanguageModel
from .text import Ids, StrPath

Array = NDArray[Any]


@dataclass
class Progress:
    """A training between two steps.

    Attributes
    ----------
    epoch, window : int
        The pass over the text, from 1, and how many of its windows are done.
    state : array, LSTMState or None
        What the next window starts from.
    losses : list of float
        Of every step, in nats per token.
    validations : list of (int, float)
        Steps done, and the loss on the validation text, in nats per token.
    best : dict of str to array, optional
        `LanguageModel.arrays` at the lowest of these.
    """

    model: LanguageModel
    optimizer: SGD | Adam
    epoch: int = 1
    window: int = 0
    state: Any = None
    losses: list[float] = field(default_factory=list)
    validations: list[tuple[int, float]] = field(default_factory=list)
    best: dict[str, Array] | None = None

    @property
    def steps(self) -> int:
        """Steps done."""
        return len(self.losses)

    @property
    def lowest(self) -> float:
        """The lowest validation loss so far."""
        return min((loss for _, loss in self.validations), default=math.inf)

    @property
    def validations_since_lowest(self) -> int:
        """How many validations the lowest lies back."""
        losses = [loss for _, loss in self.validations]
        return len(losses) - 1 - losses.index(self.lowest) if losses else 0

    def validated(self, loss: float) -> None:
        """Take note of a validation loss, and of the parameters if it is the lowest."""
        if loss < self.lowest:
            self.best = {name: array.copy() for name, array in self.model.arrays().items()}
        self.validations.append((self.steps, loss))


def fingerprint(training: Ids, validation: Ids) -> str:
    """Return what tells a text that was split from another one."""
    return hashlib.sha256(training.tobytes() + b"|" + validation.tobytes()).hexdigest()


def path_beside(output: StrPath) -> str:
    """Return where the checkpoint of a model lies: model.npz, model.checkpoint.npz."""
    stem, ending = os.path.splitext(os.fspath(output))
    return f"{stem}.checkpoint{ending}"


def save(path: StrPath, progress: Progress, options: Any, text: str) -> None:
    """Write a checkpoint: a new file that takes the place of the old one only when complete.

    Parameters
    ----------
    options : dataclass
        Of the training.
    text : str
        The fingerprint of its text.
    """
    description, arrays = progress.model.describe()
    state = progress.state
    members = state if isinstance(state, tuple) else () if state is None else (state,)
    optimizer = progress.optimizer.state_dict()
    kept = dataclasses.asdict(options)
    for name in ("text", "output"):  # it may be resumed from elsewhere
        kept[name] = kept[name] and os.path.abspath(kept[name])
    description["checkpoint"] = {
        "options": kept,
        "text": text,
        "epoch": progress.epoch,
        "window": progress.window,
        "optimizer_steps": optimizer.pop("steps"),
        "generator": progress.model.rng.bit_generator.state,
    }
    groups = {
        "optimizer": optimizer,
        "state": {str(i): member for i, member in enumerate(members)},
        "best": progress.best or {},
        "history": {
            "losses": np.array(progress.losses),
            "validation_steps": np.array([steps for steps, _ in progress.validations], np.int64),
            "validations": np.array([loss for _, loss in progress.validations]),
        },
    }
    named = {f"{group}/{name}": array for group, members in groups.items() for name, array in members.items()}
    storage.write(path, description, {**arrays, **progress.model.arrays(), **named})


def read(path: StrPath) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return the description and the arrays of a checkpoint.

    Raises
    ------
    FileError
        If the file is something else, damaged, or from a later version.
    OSError
        If it cannot be read.
    """
    description, arrays = storage.read(path)
    kept = description.get("checkpoint")
    if not isinstance(kept, dict) or not isinstance(kept.get("options"), dict):
        raise FileError(f"{os.fspath(path)} is no checkpoint of a training")
    return description, arrays


def restore(
    path: StrPath,
    description: Mapping[str, Any],
    arrays: Mapping[str, Array],
    model: LanguageModel,
    optimizer: SGD | Adam,
    text: str,
) -> Progress:
    """Return the progress that a checkpoint holds, of the model that it describes and a new optimizer of it.

    Raises
    ------
    FileError
        If it does not fit together, or is about another text.
    """
    name, kept = os.fspath(path), description["checkpoint"]
    if kept.get("text") != text:
        raise FileError(f"{name} was made with another text: it has changed since")

    def group(wanted: str) -> dict[str, Array]:
        return {key.removeprefix(f"{wanted}/"): array for key, array in arrays.items() if key.startswith(f"{wanted}/")}

    try:
        optimizer.load_state_dict({"steps": kept["optimizer_steps"], **group("optimizer")})
        model.rng.bit_generator.state = kept["generator"]
        members = [array for _, array in sorted(group("state").items())]
        state = None if not members else members[0] if len(members) == 1 else LSTMState(*members)
        history = group("history")
        losses, steps, validations = (history[key].tolist() for key in ("losses", "validation_steps", "validations"))
        best = group("best") or None
        shapes = {key: array.shape for key, array in model.arrays().items()}
        if best is not None and {key: array.shape for key, array in best.items()} != shapes:
            raise ValueError("the best parameters have other names or shapes than the last")
        if len(members) not in (0, 1 + model.network._has_cell_state):
            raise ValueError(f"there are {len(members)} states")
        wanted = (model.network.num_layers, kept["options"]["batch"], model.network.hidden_size)
        if any(member.shape != wanted for member in members):
            raise ValueError(f"the state has shape {members[0].shape}, not {wanted}")
        epoch, window = int(kept["epoch"]), int(kept["window"])
        validated = list(zip(steps, validations, strict=True))
        return Progress(model, optimizer, epoch, window, state, losses, validated, best)
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{name} does not fit together: {error}") from error
