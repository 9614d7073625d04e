"""Public packages with fastrnn beneath, run by .ci/packages: each program compares with what torch.nn gives."""

import copy

import numpy as np
import torch
from torch import nn

import fastrnn.torch


def skorch_cross_validation() -> str:
    """Cross validation in processes: estimators are cloned, pickled and trained there."""
    from sklearn.model_selection import cross_val_score
    from skorch import NeuralNetClassifier

    rng = np.random.default_rng(0)
    x = rng.standard_normal((120, 12, 3)).astype(np.float32)
    y = (x[:, :, 0].sum(1) > 0).astype(np.int64)
    scores = []
    for fast in (False, True):
        torch.manual_seed(0)
        net = NeuralNetClassifier(Classifier, module__fast=fast, max_epochs=5, lr=0.5, verbose=0, train_split=None)
        net.set_params(criterion=nn.CrossEntropyLoss, iterator_train__shuffle=False)
        scores.append(cross_val_score(net, x, y, cv=3, n_jobs=2))
    assert abs(scores[0].mean() - scores[1].mean()) < 0.1, scores
    return f"accuracy {scores[0].mean():.3f} with torch.nn, {scores[1].mean():.3f} accelerated"


class Classifier(nn.Module):
    def __init__(self, fast: bool = False) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(3, 16, batch_first=True), nn.Linear(16, 2)
        if fast:
            assert len(fastrnn.torch.accelerate(self).replaced) == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(x)[1][0])


def fastai_weight_dropout() -> str:
    """AWD-LSTM: a wrapper takes weight_hh_l0 out of the LSTM and sets it before each call."""
    from fastai.text.models.awdlstm import AWD_LSTM

    plain, fast = (AWD_LSTM(50, 8, 12, 2) for _ in range(2) if torch.manual_seed(0))
    report = fastrnn.torch.accelerate(fast)
    assert len(report.replaced) == 2, report
    words = torch.randint(0, 50, (4, 9))
    for training in (False, True):
        found = []
        for model in (plain, fast):
            model.train(training).zero_grad()
            model.reset()
            torch.manual_seed(1)
            y = model(words)
            y.square().sum().backward()
            found.append([y, *(p.grad for p in model.parameters() if p.grad is not None)])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    return f"{len(report.replaced)} layers, outputs and gradients equal in eval and training mode"


def encodec() -> str:
    """EnCodec in transformers: LSTMs between convolutions whose weights are normalised."""
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    plain = EncodecModel(EncodecConfig(num_filters=4, hidden_size=16, codebook_size=32, codebook_dim=16)).eval()
    fast = copy.deepcopy(plain)
    report = fastrnn.torch.accelerate(fast)
    assert report.replaced, report
    assert not report.skipped, report
    sound = torch.randn(1, 1, 4800)
    with torch.inference_mode():
        found = [model(sound, return_dict=True).audio_values for model in (plain, fast)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    return f"{len(report.replaced)} LSTMs, the sound is the same"


PROGRAMS = (skorch_cross_validation, fastai_weight_dropout, encodec)


def main() -> None:
    for program in PROGRAMS:
        print(f"{program.__name__}: {program()}", flush=True)


if __name__ == "__main__":
    main()
