"""Policies of sb3-contrib and modules of torchrl, over rollouts in which episodes start, and acting."""

import functools
import warnings
from collections.abc import Iterator
from typing import Any

from .program import Pair, Program, Side
from .torch_programs import import_torch, pair_of

OFTEN = 0.03  # of the steps an episode starts with, as in torchrl's own benchmark of resets


def _policy(H: int, threads: int) -> Any:
    """A recurrent actor-critic of sb3-contrib, with an LSTM for each."""
    from gymnasium import spaces
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

    torch, _ = import_torch()
    torch.set_num_threads(threads)
    options = {"lstm_hidden_size": H, "net_arch": [64]}
    return RecurrentActorCriticPolicy(spaces.Box(-1, 1, (32,)), spaces.Discrete(4), lambda _: 1e-3, **options)


def _policy_data(H: int, B: int, T: int, often: float) -> tuple[Any, Any, Any, Any]:
    """Observations, actions, states and starts, flattened as the library's buffer does."""
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    torch, _ = import_torch()
    states = torch.randn(4, 1, B, H)
    observations, actions = torch.randn(B * T, 32), torch.randint(0, 4, (B * T,))
    starts = (torch.rand(B * T) < often).float()
    return observations, actions, RNNStates((states[0], states[1]), (states[2], states[3])), starts


def _evaluate(H: int, B: int, T: int, threads: int) -> Pair:
    """evaluate_actions and backward over a rollout."""
    policy, given = _policy(H, threads), _policy_data(H, B, T, OFTEN)

    def loss(found: Any) -> Any:
        values, log_probabilities, entropy = found
        return values.square().mean() - log_probabilities.mean() - 0.01 * entropy.mean()

    return pair_of(threads, policy, True, lambda m, _: m.evaluate_actions(*given), loss)


def _act(H: int, B: int, threads: int) -> Pair:
    """One step of B environments, one in ten of which starts an episode."""
    policy, (now, _, states, starts) = _policy(H, threads), _policy_data(H, B, 1, 0.1)
    return pair_of(threads, policy, False, lambda m, _: m(now, states, starts, deterministic=True)[1], lambda y: y)


def _learn(threads: int) -> Pair:
    """RecurrentPPO.learn over four environments, their steps included; at a small rate the two stay comparable."""
    import gymnasium
    import numpy as np
    from sb3_contrib import RecurrentPPO

    torch, drop_in = import_torch()
    torch.set_num_threads(threads)

    class Cue(gymnasium.Env[Any, Any]):
        """The first observation says which last action is right; no observation depends on an action."""

        observation_space = gymnasium.spaces.Box(-1, 1, (8,))
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, **named: Any) -> tuple[Any, dict[str, Any]]:
            super().reset(**named)
            self.at, self.length = 0, int(self.np_random.integers(8, 33))
            first = np.sign(self.np_random.standard_normal(8)).astype(np.float32)
            self.right = int(first[0] > 0)
            return first, {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            self.at += 1
            done = self.at == self.length
            noise = self.np_random.uniform(-1, 1, 8).astype(np.float32)
            return noise, float(done and action == self.right), done, False, {}

    def side(fast: bool) -> Side:
        from stable_baselines3.common.env_util import make_vec_env

        model = RecurrentPPO(
            "MlpLstmPolicy", make_vec_env(Cue, 4, seed=0), n_steps=128, batch_size=128, seed=0, learning_rate=3e-5
        )
        if fast:
            drop_in.accelerate(model.policy)

        def run() -> Any:
            model.learn(512, reset_num_timesteps=False)
            return [float(p.detach().norm()) for p in model.policy.parameters()]

        return Side(run)

    return Pair(side(False), side(True))


def _module(kind: str, I: int, H: int, threads: int, backend: str = "pad") -> Any:
    torch, _ = import_torch()
    torch.set_num_threads(threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the import: what else could be installed
        import torchrl.modules
    keys = ["h", "c"] if kind == "LSTM" else ["h"]
    out_keys = ["y", *(("next", key) for key in keys)]
    made = getattr(torchrl.modules, f"{kind}Module")
    return made(I, H, in_keys=["x", *keys], out_keys=out_keys, recurrent_backend=backend)


def _recur(kind: str, B: int, T: int, I: int, H: int, backend: str, training: bool, threads: int) -> Pair:
    """A module of torchrl in recurrent mode."""
    module = _module(kind, I, H, threads, backend)
    from torchrl.modules import set_recurrent_mode

    data = _module_data((B, T), I, H, OFTEN)

    def output(m: Any, _: Any) -> Any:
        with set_recurrent_mode(True):
            return m(data.copy())["y"]

    return pair_of(threads, module, training, output, lambda y: y.square().mean())


def _module_act(kind: str, H: int, B: int, threads: int) -> Pair:
    """One step of B environments through a module of torchrl."""
    module, data = _module(kind, 32, H, threads), _module_data((B,), 32, H, 0.1)
    return pair_of(threads, module, False, lambda m, _: m(data.copy())["y"], lambda y: y)


def _module_data(shape: tuple[int, ...], I: int, H: int, often: float) -> Any:
    from tensordict import TensorDict

    torch, _ = import_torch()
    starts = torch.rand(*shape, 1) < often
    states = {key: torch.zeros(*shape, 1, H) for key in ("h", "c")}  # at every start, as the library's environments do
    return TensorDict({"x": torch.randn(*shape, I), "is_init": starts, **states}, shape)


def programs() -> Iterator[Program]:
    """All of them; those of torchrl's own benchmark, whose training takes minutes, by name."""
    bind = functools.partial
    for H in (64, 256):
        yield Program(f"sb3-evaluate-LSTM-H{H}-B2-T128-training", bind(_evaluate, H, 2, 128))
        for B in (1, 8, 64):
            yield Program(f"sb3-act-LSTM-H{H}-B{B}-inference", bind(_act, H, B), always=B == 8)
    yield Program("sb3-learn-LSTM-H256-training", _learn)
    for kind in ("LSTM", "GRU"):
        for B, I, H in ((8, 32, 128), (128, 32, 256)):
            for training in (False, True):
                name = f"torchrl-{kind}-B{B}-T128-I{I}-H{H}-{'training' if training else 'inference'}"
                yield Program(name, bind(_recur, kind, B, 128, I, H, "pad", training), always=B == 8)
        scan = bind(_recur, kind, 128, 128, 32, 256, "scan", False)
        yield Program(f"torchrl-scan-{kind}-B128-T128-I32-H256-inference", scan, always=False)
        for B in (1, 8, 64):
            name = f"torchrl-act-{kind}-H128-B{B}-inference"
            yield Program(name, bind(_module_act, kind, 128, B), always=B == 8)
