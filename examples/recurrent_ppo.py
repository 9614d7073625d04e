"""RecurrentPPO of sb3-contrib, computed by torch.nn and after `fastrnn.torch.accelerate`.

The agent needs a memory: each episode shows one of four cues in its first observation. Noise follows, and the last
observation asks: the reward is 1 if the action then names the cue. An agent without memory can only guess (0.25).

The program trains twice from the same seed. Learning from a rollout, the library's policy loops over the time steps,
because its LSTMs start from zeros where an episode starts. After `accelerate(model.policy)` it makes one call instead.
Acting stays a call for each step.

    pip install 'fastrnn[torch]' sb3-contrib
    python examples/recurrent_ppo.py [--quick] [--threads N] [--seed N] [--plot FILE.png]
"""

import argparse
import time

import gymnasium
import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

import fastrnn.torch
from fastrnn.lm.pictures import require_matplotlib

CUES, HIDDEN, T, B = 4, 64, 64, 32  # T steps of B environments are a rollout


class Cues(gymnasium.Env):
    """A cue in the first observation, then noise, and in the last observation the question which cue it was."""

    action_space = gymnasium.spaces.Discrete(CUES)
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (CUES + 1,), np.float32)

    def __init__(self, shortest, longest):
        self.shortest, self.longest = shortest, longest

    def observation(self):
        return np.append(0.3 * self.np_random.standard_normal(CUES), self.left == 1).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cue = self.np_random.integers(CUES)
        self.left = int(self.np_random.integers(self.shortest, self.longest + 1))
        x = self.observation()
        x[self.cue] += 2
        return x, {}

    def step(self, action):
        self.left -= 1
        done = self.left == 0
        return self.observation(), float(done and action == self.cue), done, False, {}


class Times(BaseCallback):
    """Keeps when each rollout begins and ends, and the mean return of the last 100 episodes at its end."""

    def __init__(self):
        super().__init__()
        self.begins, self.ends, self.returns = [], [], []

    def _on_rollout_start(self):
        self.begins.append(time.perf_counter())

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.ends.append(time.perf_counter())
        self.returns.append(np.mean([episode["r"] for episode in self.model.ep_info_buffer]))


def train(fast, lengths, rollouts, seed):
    """Return the mean returns, when they were reached, and how long acting and learning took; in seconds."""
    model = RecurrentPPO(
        "MlpLstmPolicy",
        make_vec_env(lambda: Cues(*lengths), B),
        learning_rate=lambda left: 5e-3 * left,
        n_steps=T,
        batch_size=T * B,
        n_epochs=4,
        gamma=0.9,
        gae_lambda=0.8,
        ent_coef=0.03,
        policy_kwargs={"lstm_hidden_size": HIDDEN, "net_arch": []},
        seed=seed,
        device="cpu",
    )
    for lstm in (model.policy.lstm_actor, model.policy.lstm_critic):
        lstm.bias_ih_l0.data[HIDDEN : 2 * HIDDEN] = 2  # of the forget gates: at first they forget little
    if fast:
        print(fastrnn.torch.accelerate(model.policy))
    times = Times()
    model.learn(rollouts * T * B, times)
    end = time.perf_counter()
    acting = sum(times.ends) - sum(times.begins)
    return times.returns, np.array(times.ends) - times.begins[0], acting, end - times.begins[0] - acting


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="train less, on shorter episodes")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the returns over time (needs matplotlib)")
    parser.add_argument("--threads", metavar="N", type=int, default=1, help="threads of both (%(default)s)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of weights and episodes (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.plot:
        require_matplotlib()
    lengths, rollouts = ((2, 4), 16) if arguments.quick else ((10, 30), 80)
    print(f"episodes of {lengths[0]} to {lengths[1]} steps; {rollouts * T * B:,} steps")
    runs = {name: train(name == "fastrnn", lengths, rollouts, arguments.seed) for name in ("torch.nn", "fastrnn")}
    for name, (returns, _, acting, learning) in runs.items():
        print(f"{name}: return {returns[0]:.2f} at first, {returns[-1]:.2f} at last", end="; ")
        print(f"{acting + learning:.1f} s: acting {acting:.1f} s, learning {learning:.1f} s")
    theirs, ours = (np.array([acting + learning, acting, learning]) for _, _, acting, learning in runs.values())
    print("torch.nn's time over fastrnn's: {:.2f}; acting {:.2f}, learning {:.2f}".format(*theirs / ours))
    if arguments.plot:
        draw(arguments.plot, runs)
    for returns, *_ in runs.values():
        assert returns[0] < 0.4
        assert returns[-1] > 0.85


def draw(path, runs):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axis = figure.subplots()
    for (name, (returns, seconds, *_)), colour in zip(runs.items(), ("#D55E00", "#0072B2"), strict=True):
        axis.plot(seconds, returns, color=colour, label=name)
    axis.axhline(1 / CUES, color="black", linestyle="--", linewidth=1, label="the best without memory")
    axis.set(xlabel="seconds of learn()", ylabel="return", ylim=(0, 1.03))
    axis.grid(alpha=0.3)
    axis.legend(loc="center right")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
