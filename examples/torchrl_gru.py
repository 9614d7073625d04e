"""PPO with torchrl's GRUModule, computed by torch.nn and after `fastrnn.torch.accelerate`.

The agent needs a memory: each episode shows one of four cues in its first observation. Noise follows, and the last
observation asks: the reward is 1 if the action then names the cue. An agent without memory can only guess (0.25).

The program trains twice from the same seed. To learn from a rollout, GRUModule (in its recurrent mode) cuts it where
`is_init` says that an episode starts, pads the pieces to one length, and packs them for nn.GRU. After `accelerate` the
pieces are packed straight from the rollout, and fastrnn computes them. Acting stays a call for each step.

    pip install 'fastrnn[torch]' torchrl
    python examples/torchrl_gru.py [--quick] [--threads N] [--plot FILE.png]
"""

import argparse
import time

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import Binary, Categorical, Composite, Unbounded
from torchrl.envs import Compose, EnvBase, InitTracker, TransformedEnv
from torchrl.modules import ActorValueOperator, GRUModule, ProbabilisticActor, set_recurrent_mode
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import fastrnn.torch
from fastrnn.lm.pictures import require_matplotlib

CUES, HIDDEN, T, B = 4, 64, 64, 32  # T steps of B environments are a rollout


class Cues(EnvBase):
    """B environments: a cue in the first observation, then noise, and in the last one the question which cue it was."""

    def __init__(self, shortest, longest):
        super().__init__(batch_size=[B])
        self.shortest, self.longest = shortest, longest
        self.cue, self.left = torch.zeros(2, B, dtype=torch.int64)
        self.observation_spec = Composite(observation=Unbounded((B, CUES + 1)), shape=[B])
        self.action_spec = Categorical(CUES, shape=(B,))
        self.reward_spec = Unbounded((B, 1))
        self.done_spec = Binary(1, shape=(B, 1), dtype=torch.bool)
        self.set_seed(0)

    def _set_seed(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def observation(self):
        noise = 0.3 * torch.randn(B, CUES, generator=self.generator)
        return torch.cat([noise, (self.left == 1)[:, None]], 1)

    def _reset(self, tensordict):
        """Start new episodes, where "_reset" tells so; torchrl leaves what is returned for the others."""
        some = tensordict is not None and "_reset" in tensordict
        start = tensordict["_reset"][:, 0] if some else torch.ones(B, dtype=torch.bool)
        new = int(start.sum())
        self.cue[start] = torch.randint(CUES, (new,), generator=self.generator)
        self.left[start] = torch.randint(self.shortest, self.longest + 1, (new,), generator=self.generator)
        x = self.observation()
        x[start, self.cue[start]] += 2
        return TensorDict({"observation": x, "done": torch.zeros(B, 1, dtype=torch.bool)}, [B])

    def _step(self, tensordict):
        done = self.left == 1
        self.left -= 1
        reward = (done & (tensordict["action"] == self.cue)).float()
        return TensorDict({"observation": self.observation(), "reward": reward[:, None], "done": done[:, None]}, [B])


def train(fast, lengths, rollouts):
    """Return the return of each rollout, when it was learnt from, and how long acting and learning took; in seconds."""
    torch.manual_seed(0)
    gru = GRUModule(CUES + 1, HIDDEN, in_keys=["observation", "h"], out_keys=["y", ("next", "h")])
    logits = TensorDictModule(nn.Linear(HIDDEN, CUES), ["y"], ["logits"])
    kind = torch.distributions.Categorical
    actor = ProbabilisticActor(logits, ["logits"], distribution_class=kind, return_log_prob=True)
    agent = ActorValueOperator(gru, actor, TensorDictModule(nn.Linear(HIDDEN, 1), ["y"], ["state_value"]))
    if fast:
        print(fastrnn.torch.accelerate(agent))
    policy, critic = agent.get_policy_operator(), agent.get_value_operator()
    env = TransformedEnv(Cues(*lengths), Compose(InitTracker(), gru.make_tensordict_primer()))
    collector = Collector(env, policy, frames_per_batch=T * B, total_frames=rollouts * T * B)
    gae = GAE(gamma=0.9, lmbda=0.8, value_network=critic, shifted=True)
    loss = ClipPPOLoss(policy, critic, entropy_coeff=0.02)
    adam = torch.optim.Adam(loss.parameters(), 3e-3)
    returns, at, acting, learning = [], [], 0.0, 0.0
    begin = time.perf_counter()
    for rollout in collector:
        acted = time.perf_counter()
        with set_recurrent_mode(True):
            with torch.no_grad():
                gae(rollout)
            for _ in range(4):
                losses = loss(rollout)
                adam.zero_grad()
                (losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]).backward()
                nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
                adam.step()
        returns.append(float(rollout["next", "reward"].sum() / rollout["next", "done"].sum()))  # for each episode
        learnt = time.perf_counter()
        acting, learning, begin = acting + acted - begin, learning + learnt - acted, learnt
        at.append(acting + learning)
    collector.shutdown()
    return returns, at, acting, learning


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="train less, on shorter episodes")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the returns over time (needs matplotlib)")
    parser.add_argument("--threads", metavar="N", type=int, default=1, help="threads of both (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.plot:
        require_matplotlib()
    lengths, rollouts = ((2, 4), 16) if arguments.quick else ((10, 30), 120)
    print(f"episodes of {lengths[0]} to {lengths[1]} steps; {rollouts * T * B:,} steps")
    runs = {name: train(name == "fastrnn", lengths, rollouts) for name in ("torch.nn", "fastrnn")}
    for name, (returns, _, acting, learning) in runs.items():
        print(f"{name}: return {returns[0]:.2f} at first, {sum(returns[-5:]) / 5:.2f} at last", end="; ")
        print(f"{acting + learning:.1f} s: acting {acting:.1f} s, learning {learning:.1f} s")
    theirs, ours = (torch.tensor([acting + learning, acting, learning]) for _, _, acting, learning in runs.values())
    print("torch.nn's time over fastrnn's: {:.2f}; acting {:.2f}, learning {:.2f}".format(*theirs / ours))
    if arguments.plot:
        draw(arguments.plot, runs)
    for returns, *_ in runs.values():
        assert returns[0] < 0.4
        assert sum(returns[-5:]) / 5 > 0.85


def draw(path, runs):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axis = figure.subplots()
    for (name, (returns, at, *_)), colour in zip(runs.items(), ("#D55E00", "#0072B2"), strict=True):
        axis.plot(at, returns, color=colour, label=name)
    axis.axhline(1 / CUES, color="black", linestyle="--", linewidth=1, label="the best without memory")
    axis.set(xlabel="seconds of acting and learning", ylabel="return", ylim=(0, 1.03))
    axis.grid(alpha=0.3)
    axis.legend(loc="center right")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
