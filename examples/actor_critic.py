"""An actor-critic with a memory (A2C), in NumPy: the agent has to answer a question about the start of its episode.

Each episode shows one of four cues in its first observation. Noise follows, and the last observation asks: the reward
is 1 if the action then names the cue. An agent without memory can only guess (0.25). Episodes have different lengths,
so they start anywhere inside a rollout. The agent acts by `step` of a frozen GRU, whose state is set to zero where an
episode starts. It learns from the whole rollout in one call: `reset=` cuts the sequences at the same places.

    python examples/actor_critic.py [--quick] [--plot FILE.png]
"""

import argparse
import time

import numpy as np

import fastrnn
from fastrnn.lm.pictures import require_matplotlib

CUES, HIDDEN, T, B = 4, 64, 64, 32  # T steps of B environments are a rollout
GAMMA, LAMBDA, ENTROPY = 0.9, 0.8, 0.05


class Environments:
    """B environments side by side; one whose episode is over shows the first observation of the next."""

    def __init__(self, shortest, longest, rng):
        self.shortest, self.longest, self.rng = shortest, longest, rng
        self.cue, self.left = np.zeros((2, B), int)
        self.observe(np.ones(B, bool))

    def observe(self, start):
        new = np.count_nonzero(start)
        self.cue[start] = self.rng.integers(CUES, size=new)
        self.left[start] = self.rng.integers(self.shortest, self.longest + 1, new)
        self.start, asks = start, self.left[:, None] == 1
        self.x = np.concatenate([0.3 * self.rng.standard_normal((B, CUES)), asks], axis=1, dtype=np.float32)
        self.x[start, self.cue[start]] += 2

    def step(self, action):
        """Return the rewards (B,), and where the episode is over (B,)."""
        done = self.left == 1
        reward = (done & (action == self.cue)).astype(np.float32)
        self.left -= 1
        self.observe(done)
        return reward, done


def softmax(logits):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def play(gru, read_out, environments, state, rng):
    """Act for T steps from `state`, which moves on; return what happened, each (T,B,...), and the value after it."""
    fast, h, rollout = gru.freeze(), np.empty((B, HIDDEN), np.float32), []
    for _ in range(T):
        x, start = environments.x, environments.start
        state[:, start] = 0
        fast.step(x, state, out=h, state_out=state)
        found = read_out(h)
        action = (softmax(found[:, :-1]).cumsum(-1) > rng.random((B, 1))).argmax(-1)
        rollout.append((x, start, action, *environments.step(action), found[:, -1]))
    after, _ = fast.step(environments.x, state)  # its value does not count where the episode is over
    return [np.stack(steps) for steps in zip(*rollout, strict=True)], read_out(after)[:, -1]


def advantages(reward, done, value, after):
    """Return the generalised advantage estimates (Schulman et al. 2016)."""
    found, advantage = np.empty_like(reward), 0
    for t in reversed(range(T)):
        goes_on = GAMMA * ~done[t]
        advantage = reward[t] + goes_on * after - value[t] + goes_on * LAMBDA * advantage
        found[t], after = advantage, value[t]
    return found


def learn(gru, read_out, adam, before, rollout, after):
    x, start, action, reward, done, value = rollout
    advantage = advantages(reward, done, value, after)
    y, _, tape = gru.forward(x, before, reset=start)
    found, read_out_tape = read_out.forward(y)
    p = softmax(found[..., :-1])
    entropy = -(p * np.log(p)).sum(-1, keepdims=True)
    scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
    d = np.empty_like(found)  # of the mean of -scaled log p[action] - ENTROPY entropy + (value - return)**2 / 4
    d[..., :-1] = scaled[..., None] * (p - np.eye(CUES)[action]) + ENTROPY * p * (np.log(p) + entropy)
    d[..., -1] = (found[..., -1] - value - advantage) / 2
    d_read_out = read_out.backward(read_out_tape, d / action.size)
    grads = [gru.backward(tape, d_read_out.x).parameters, d_read_out.parameters]
    fastrnn.clip_grad_norm(grads, 0.5)
    adam.step(grads)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="train less, on shorter episodes")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the return (needs matplotlib)")
    arguments = parser.parse_args()
    if arguments.plot:
        require_matplotlib()
    (shortest, longest), rollouts = ((3, 6), 120) if arguments.quick else ((10, 30), 700)
    environments, rng = Environments(shortest, longest, np.random.default_rng(0)), np.random.default_rng(1)
    gru, read_out = fastrnn.GRU(CUES + 1, HIDDEN, rng=2), fastrnn.Linear(HIDDEN, CUES + 1, rng=3)
    adam = fastrnn.Adam([gru.parameters(), read_out.parameters()])
    state, returns, begin = np.zeros((1, B, HIDDEN), np.float32), [], time.perf_counter()
    for i in range(rollouts):
        before = state.copy()  # the rollout's first step starts from it
        rollout, after = play(gru, read_out, environments, state, rng)
        adam.lr = fastrnn.learning_rate(i, rollouts, peak=8e-3)
        learn(gru, read_out, adam, before, rollout, after)
        returns.append(rollout[3].sum() / rollout[4].sum())  # per episode that ended
    seconds = time.perf_counter() - begin
    first, last = np.mean(returns[:10]), np.mean(returns[-10:])
    print(f"episodes of {shortest} to {longest} steps; {rollouts * T * B:,} steps in {seconds:.1f} s")
    print(f"return: {first:.2f} at first, {last:.2f} at last; the best without memory gets {1 / CUES}")
    if arguments.plot:
        draw(arguments.plot, np.array(returns))
    assert first < 0.4
    assert last > 0.9


def draw(path, returns):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axis, every = figure.subplots(), 10
    at = (np.arange(len(returns) // every) + 0.5) * every * T * B / 1000
    axis.plot(at, returns.reshape(-1, every).mean(1), color="#0072B2", label="GRU")
    axis.axhline(1 / CUES, color="black", linestyle="--", linewidth=1, label="the best without memory")
    axis.set(xlabel="thousands of steps in the environments", ylabel="return", ylim=(0, 1.03))
    axis.grid(alpha=0.3)
    axis.legend(loc="center right")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
