"""Public packages with fastrnn beneath, run by .ci/long: each program compares with what torch.nn gives."""

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

import fastrnn.torch


def assert_same(plain: nn.Module, fast: nn.Module, run: Callable[[nn.Module], torch.Tensor]) -> None:
    """Both models give the same from the same random numbers, and then have the same gradients."""
    found = []
    for model in (plain, fast):
        model.zero_grad()
        torch.manual_seed(1)
        y = run(model)
        if y.requires_grad:
            y.square().sum().backward()
        found.append([y, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def skorch_cross_validation() -> str:
    """Cross validation in processes: estimators are cloned, pickled and trained there."""
    from sklearn.model_selection import cross_val_predict
    from skorch import NeuralNetClassifier

    rng = np.random.default_rng(0)
    x = rng.standard_normal((120, 12, 3)).astype(np.float32)
    y = (x[:, :, 0].sum(1) > 0).astype(np.int64)
    chances = []
    for fast in (False, True):
        net = NeuralNetClassifier(Classifier, module__fast=fast, max_epochs=50, lr=0.1, verbose=0, train_split=None)
        net.set_params(criterion=nn.CrossEntropyLoss, batch_size=20, iterator_train__shuffle=False)
        chances.append(cross_val_predict(net, x, y, cv=3, n_jobs=2, method="predict_proba"))
    torch.testing.assert_close(*chances, rtol=0, atol=1e-2)
    plain, fast = ((c.argmax(1) == y).mean() for c in chances)
    assert plain > 0.85, plain
    return f"accuracy {plain:.3f} with torch.nn, {fast:.3f} accelerated"


class Classifier(nn.Module):
    def __init__(self, fast: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)  # each fold's process makes its own
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

    def run(model: nn.Module) -> torch.Tensor:
        model.reset()
        return model(words)

    for training in (False, True):
        assert_same(plain.train(training), fast.train(training), run)
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


def gluonts_deepar() -> str:
    """DeepAR: a loss over whole sequences, forecasts sampled step by step with states that are lists."""
    from gluonts.torch.model.deepar.module import DeepARModel

    torch.manual_seed(0)
    plain = DeepARModel("D", context_length=14, prediction_length=5, lags_seq=[1, 2, 7], num_parallel_samples=20)
    fast = copy.deepcopy(plain)
    report = fastrnn.torch.accelerate(fast)
    assert list(report.replaced) == ["rnn"], report
    inputs = {name: torch.rand(like.shape) for name, like in plain.describe_inputs(4).zeros().items()}
    inputs["feat_static_cat"] = torch.zeros(4, 1, dtype=torch.long)
    future = {"future_target": torch.rand(4, 5), "future_observed_values": torch.ones(4, 5)}
    assert_same(plain.train(), fast.train(), lambda model: model.loss(**inputs, **future))
    with torch.inference_mode():
        assert_same(plain.eval(), fast.eval(), lambda model: model(**inputs))
    return "loss, gradients and samples equal"


def gluonts_estimator() -> str:
    """The estimator around DeepAR: Lightning trains and keeps checkpoints, a predictor forecasts."""
    from gluonts.dataset.common import ListDataset
    from gluonts.torch import DeepAREstimator

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

    class Accelerated(DeepAREstimator):
        def create_lightning_module(self) -> nn.Module:
            module = super().create_lightning_module()
            assert list(fastrnn.torch.accelerate(module).replaced) == ["model.rnn"]
            return module

    days = np.arange(120)
    data = ListDataset([{"start": "2024-01-01", "target": 5 + np.sin(days / 3 + i)} for i in range(4)], freq="D")
    found = []
    for kind in (DeepAREstimator, Accelerated):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 (gluonts draws its windows there)
        with tempfile.TemporaryDirectory() as folder:
            trainer = {"max_epochs": 2, "accelerator": "cpu", "default_root_dir": folder}
            trainer |= dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
            estimator = kind("D", 5, num_batches_per_epoch=10, batch_size=8, trainer_kwargs=trainer)
            predictor = estimator.train(data)
        torch.manual_seed(2)
        found.append(np.stack([forecast.samples for forecast in predictor.predict(data, num_samples=20)]))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
    return f"forecasts after training within {np.abs(found[0] - found[1]).max():.0e}"


def pytorch_forecasting_models() -> str:
    """Classes derived from LSTM and GRU whose forward takes lengths, also of 0, packs, and calls super().forward."""
    import pandas as pd
    from pytorch_forecasting import DeepAR, RecurrentNetwork, TemporalFusionTransformer, TimeSeriesDataSet

    rng = np.random.default_rng(0)
    rows = [(s, t, np.sin(t / 2 + i) + rng.normal(0, 0.1)) for i, s in enumerate("abc") for t in range(12 + 2 * i)]
    data = TimeSeriesDataSet(
        pd.DataFrame(rows, columns=["series", "time", "value"]),
        time_idx="time",
        target="value",
        group_ids=["series"],
        min_encoder_length=1,
        max_encoder_length=6,
        min_prediction_length=1,
        max_prediction_length=3,
        time_varying_unknown_reals=["value"],
        randomize_length=None,
    )
    torch.manual_seed(0)
    x, (y, _) = next(iter(data.to_dataloader(train=True, batch_size=16)))
    assert x["encoder_lengths"].min() == 1  # RecurrentNetwork and DeepAR leave the first step out
    models = [RecurrentNetwork.from_dataset(data, cell_type=cell) for cell in ("LSTM", "GRU")]
    models += [DeepAR.from_dataset(data, cell_type="GRU"), TemporalFusionTransformer.from_dataset(data, lstm_layers=2)]
    replaced = []
    for plain in models:
        fast = copy.deepcopy(plain)
        report = fastrnn.torch.accelerate(fast)
        assert not report.skipped, report
        replaced.append(f"{type(plain).__name__} ({', '.join(report.replaced)})")
        assert_same(plain.train(), fast.train(), lambda model: model.loss(model(x).prediction, y))
        assert_same(plain.eval(), fast.eval(), lambda model: model(x).prediction)
    return f"{', '.join(replaced)}: losses, predictions and gradients equal"


PROGRAMS = (
    skorch_cross_validation,
    fastai_weight_dropout,
    encodec,
    gluonts_deepar,
    gluonts_estimator,
    pytorch_forecasting_models,
)


def main() -> None:
    warnings.simplefilter("ignore")  # the packages' own
    for program in PROGRAMS:
        print(f"{program.__name__}: {program()}", flush=True)


if __name__ == "__main__":
    main()
