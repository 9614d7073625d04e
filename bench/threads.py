"""What a second thread brings: LSTM, float32, I = H, T = 50; microseconds a step on one thread and the gain of two.

python bench/threads.py
"""

import numpy as np

import fastrnn
from timing import Call, alone

SIZES = [(64, 1), (64, 4), (64, 16), (128, 1), (256, 1), (256, 4), (256, 16), (512, 1), (512, 16), (256, 64)]
STEPS, SECONDS = 50, 0.5


def calls(H: int, B: int, bidirectional: bool) -> dict[str, Call]:
    """A frozen layer's call and a training call."""
    layer = fastrnn.LSTM(H, H, bidirectional=bidirectional, rng=0)
    frozen = layer.freeze()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((STEPS, B, H), dtype=np.float32)
    dy = rng.standard_normal((STEPS, B, H * (1 + bidirectional)), dtype=np.float32)

    def train() -> list[np.ndarray]:
        return [layer.backward(layer.forward(x, training=True)[2], dy).x]

    return {"inference": lambda: [frozen(x)[0]], "training": train}


def main() -> None:
    for bidirectional in (False, True):
        for H, B in SIZES:
            line = f"{'two directions' if bidirectional else 'one direction':14} H={H:<4} B={B:<3}"
            for name, call in calls(H, B, bidirectional).items():
                medians = []
                for n in (1, 2):
                    with fastrnn.threads(n):
                        medians.append(alone(call, SECONDS).median)
                line += f"  {name} {medians[0] / STEPS * 1e6:8.2f} us/step x{medians[0] / medians[1]:.2f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
