"""Modules of sb3-contrib and torchrl: one call gives the numbers of the library's own code, wherever episodes start."""

import copy
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from torch_support import assert_alike, ft, nn, torch

from fastrnn.torch import episodes  # isort: skip

# Episodes of 6 steps in 3 rows: none starts, at step 0, at consecutive steps, in every row, everywhere.
STARTS = {
    "none": [[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]],
    "at-0": [[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]],
    "consecutive": [[0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]],
    "every-row": [[1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1]],
    "everywhere": [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]],
}
B, T, I, H = 3, 6, 4, 5

starting = pytest.mark.parametrize("starts", STARTS.values(), ids=STARTS)


@pytest.fixture(autouse=True)
def compared_anew() -> Iterator[None]:
    """Each test compares the libraries with ours itself."""
    torch.manual_seed(0)
    caches = (episodes._disagreement, episodes._made)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def calls_of(layers: list[Any]) -> list[Any]:
    """Count the calls of layers."""
    seen: list[Any] = []
    for layer in layers:
        layer.register_forward_hook(lambda *call: seen.append(call))
    return seen


class TestPolicies:
    """sb3-contrib's recurrent policies."""

    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("sb3_contrib")

    @staticmethod
    def policy(which: str = "mlp", **options: Any) -> Any:
        from gymnasium import spaces
        from sb3_contrib.common.recurrent import policies

        image = spaces.Box(0, 255, (3, 36, 36), dtype="uint8")
        box = spaces.Box(-1, 1, (I,))
        kind, space = {
            "mlp": (policies.RecurrentActorCriticPolicy, box),
            "cnn": (policies.RecurrentActorCriticCnnPolicy, image),
            "inputs": (policies.RecurrentMultiInputActorCriticPolicy, spaces.Dict({"a": box, "b": image})),
        }[which]
        torch.manual_seed(0)
        return kind(space, spaces.Discrete(3), lambda _: 1e-3, lstm_hidden_size=H, **options)

    @staticmethod
    def observations(which: str, n: int) -> Any:
        image, box = torch.randint(0, 256, (n, 3, 36, 36), dtype=torch.uint8), torch.randn(n, I)
        return {"mlp": box, "cnn": image, "inputs": {"a": box, "b": image}}[which]

    @staticmethod
    def states(layers: int = 1) -> Any:
        from sb3_contrib.common.recurrent.type_aliases import RNNStates

        h = torch.randn(4, layers, B, H)
        return RNNStates((h[0], h[1]), (h[2], h[3]))

    @starting
    def test_a_sequence(self, starts: Any) -> None:
        """Outputs, states and gradients, in float64."""
        policy = self.policy(n_lstm_layers=2).double()
        x, h, c = torch.randn(B * T, I).double(), *torch.randn(2, 2, B, H).double()
        found = []
        for _ in range(2):
            given = [t.clone().requires_grad_() for t in (x, h, c)]
            first = torch.tensor(starts, dtype=torch.float64).flatten()
            y, ends = policy._process_sequence(given[0], tuple(given[1:]), first, policy.lstm_actor)
            loss = sum((o * torch.arange(o.numel()).reshape(o.shape)).sum() for o in (y, *ends))
            wanted = [*given, *policy.lstm_actor.parameters()]
            grads = torch.autograd.grad(loss, wanted, allow_unused=True)
            found.append([y, *ends, *(torch.zeros(()).double() if g is None else g for g in grads)])
            report = ft.accelerate(policy)
        assert report.sequences == {"": "RecurrentActorCriticPolicy: one call where episodes start inside a sequence"}
        assert_alike(*found, tolerance=1e-11)
        calls = calls_of([policy.lstm_actor])
        policy._process_sequence(x, (h, c), first, policy.lstm_actor)
        assert len(calls) == 1

    @pytest.mark.parametrize(
        ("which", "options"),
        [
            ("mlp", {}),
            ("mlp", {"shared_lstm": True, "enable_critic_lstm": False}),
            ("mlp", {"enable_critic_lstm": False}),
            ("mlp", {"share_features_extractor": False}),
            ("cnn", {}),
            ("inputs", {"n_lstm_layers": 2}),
        ],
        ids=lambda value: value if isinstance(value, str) else "-".join(value) or "plain",
    )
    def test_every_policy(self, which: str, options: dict[str, Any]) -> None:
        plain = self.policy(which, **options)
        fast = copy.deepcopy(plain)
        report = ft.accelerate(fast)
        assert not report.skipped
        assert len(report.sequences) == 1
        assert isinstance(fast, type(plain))
        actions, states = torch.randint(0, 3, (B * T,)), self.states(options.get("n_lstm_layers", 1))
        observations = self.observations(which, B * T)
        first = torch.tensor(STARTS["every-row"], dtype=torch.float32).flatten()
        now, starts_now = self.observations(which, B), torch.tensor([1.0, 0.0, 1.0])
        found = []
        for policy in (fast, plain):
            values, log, entropy = policy.evaluate_actions(observations, actions, states, first)
            (values.sum() + log.sum() + entropy.sum()).backward()
            acted = policy(now, states, starts_now, deterministic=True)
            predicted = policy.predict_values(now, states.vf, starts_now)
            grads = [p.grad for p in policy.parameters() if p.grad is not None]
            found.append([values, log, entropy, *acted[:3], *acted[3].pi, *acted[3].vf, predicted, *grads])
        assert_alike(*found, tolerance=1e-5)

    def test_restored_copied_and_pickled(self) -> None:
        plain = self.policy()
        kind, names = type(plain), list(plain.state_dict())
        policy = ft.accelerate(plain).model
        for again in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
            assert type(again) is type(policy)
            assert list(again.state_dict()) == names
            assert type(ft.restore(again)) is kind
        assert ft.accelerate(policy).sequences
        with ft.accelerate(ft.restore(policy)):
            assert type(policy) is not kind
        assert type(policy) is kind

    def test_learning_saving_and_loading(self, tmp_path: Any) -> None:
        import gymnasium
        from sb3_contrib import RecurrentPPO

        found = []
        for fast in (False, True):
            env = gymnasium.make("CartPole-v1")
            options = {"lstm_hidden_size": 8, "net_arch": [8]}
            model = RecurrentPPO(
                "MlpLstmPolicy", env, n_steps=32, batch_size=32, n_epochs=2, policy_kwargs=options, seed=0
            )
            if fast:
                assert len(ft.accelerate(model.policy).replaced) == 2
            model.learn(64)
            model.save(tmp_path / "model")
            loaded = RecurrentPPO.load(tmp_path / "model", env)
            assert ft.accelerate(loaded.policy).sequences
            acted = loaded.predict(env.reset(seed=1)[0], episode_start=[True], deterministic=True)
            found.append([torch.as_tensor(a) for a in (acted[0], *acted[1])])
        assert_alike(*found, tolerance=1e-4)

    def test_an_unknown_version_is_left_alone_and_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

        library = RecurrentActorCriticPolicy._process_sequence

        def late(features: Any, states: Any, starts: Any, lstm: Any) -> Any:
            return library(features, states, torch.roll(starts, 1), lstm)

        monkeypatch.setattr(RecurrentActorCriticPolicy, "_process_sequence", staticmethod(late))
        policy = self.policy()
        report = ft.accelerate(policy)
        assert type(policy) is RecurrentActorCriticPolicy
        assert "RecurrentActorCriticPolicy of sb3-contrib" in report.skipped[""]
        assert "does not compute sequences with episode starts as fastrnn knows it" in report.skipped[""]
        assert len(report.replaced) == 2

    def test_a_version_that_is_called_otherwise_is_left_alone_and_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

        monkeypatch.setattr(RecurrentActorCriticPolicy, "_process_sequence", staticmethod(lambda batch: batch))
        why = ft.accelerate(self.policy()).skipped[""]
        assert re.search(r"knows it from 2\.9 \(TypeError: .* takes 1 positional argument", why)
        episodes._disagreement.cache_clear()
        monkeypatch.delattr(RecurrentActorCriticPolicy, "_process_sequence")
        report = ft.accelerate(self.policy())
        assert "(AttributeError: " in report.skipped[""]

    def test_one_of_its_own_way_is_left_alone_and_named(self) -> None:
        from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

        class Own(RecurrentActorCriticPolicy):
            @staticmethod
            def _process_sequence(*arguments: Any) -> Any:
                return RecurrentActorCriticPolicy._process_sequence(*arguments)

        policy = self.policy()
        policy.__class__ = Own
        assert ft.accelerate(policy).skipped == {"": "Own has its own _process_sequence"}
        policy = self.policy()
        assert ft.accelerate(policy, exclude="").skipped == {"": "excluded"}
        policy = self.policy()
        assert ft.accelerate(policy, exclude="lstm_critic").skipped[""] == "its layers are not computed by fastrnn"

    def test_random_numbers_are_not_drawn(self) -> None:
        policy = self.policy()
        before = torch.get_rng_state()
        ft.accelerate(policy)
        assert torch.equal(torch.get_rng_state(), before)


class TestModules:
    """torchrl's LSTMModule and GRUModule."""

    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the import
            pytest.importorskip("torchrl")
            import torchrl.modules  # noqa: F401

    @staticmethod
    def module(kind: str, layers: int = 1, **options: Any) -> Any:
        import torchrl.modules

        keys = ["h", "c"] if kind == "LSTM" else ["h"]
        torch.manual_seed(0)
        return getattr(torchrl.modules, f"{kind}Module")(
            I, H, layers, in_keys=["x", *keys], out_keys=["y", *(("next", key) for key in keys)], **options
        )

    @staticmethod
    def data(shape: tuple[int, ...], starts: Any, layers: int = 1, dtype: Any = torch.float64) -> Any:
        from tensordict import TensorDict

        tensors = {key: torch.randn(*shape, layers, H, dtype=dtype) for key in ("h", "c")}
        tensors["x"] = torch.randn(*shape, I, dtype=dtype)
        return TensorDict({**tensors, "is_init": torch.tensor(starts, dtype=torch.bool).reshape(*shape, 1)}, shape)

    @staticmethod
    def results(module: Any, data: Any, recurrent: bool = True) -> list[Any]:
        """Outputs and the gradients of all that goes in."""
        from torchrl.modules import set_recurrent_mode

        data = data.copy()
        inputs = [data[key].requires_grad_() for key in ("x", *module.in_keys[1:-1]) if key in data.keys()]  # noqa: SIM118
        with set_recurrent_mode(recurrent):
            out = module(data)
        assert out is data
        outputs = [out[key] for key in module.out_keys]
        loss = sum((o * torch.arange(o.numel()).reshape(o.shape)).sum() for o in outputs)
        grads = torch.autograd.grad(loss, [*inputs, *module.parameters()], allow_unused=True)
        return [*outputs, *(torch.zeros((), dtype=torch.float64) if g is None else g for g in grads)]

    def compared(self, plain: Any, data: Any, recurrent: bool = True) -> None:
        fast = copy.deepcopy(plain)
        assert ft.accelerate(fast).sequences
        assert_alike(self.results(fast, data, recurrent), self.results(plain, data, recurrent), tolerance=1e-11)

    @starting
    @pytest.mark.parametrize("kind", ["LSTM", "GRU"])
    def test_a_sequence(self, kind: str, starts: Any) -> None:
        plain, data = self.module(kind, layers=2).double(), self.data((B, T), starts, layers=2)
        self.compared(plain, data)
        fast = ft.accelerate(plain).model
        calls = calls_of([fast.lstm if kind == "LSTM" else fast.gru])
        self.results(fast, data)
        assert len(calls) == 1

    @pytest.mark.parametrize("kind", ["LSTM", "GRU"])
    @pytest.mark.parametrize("shape", [(18,), (1, 3, 6), (3, 1, 6)])
    def test_other_batches(self, kind: str, shape: tuple[int, ...]) -> None:
        self.compared(self.module(kind).double(), self.data(shape, STARTS["every-row"]))

    @pytest.mark.parametrize("kind", ["LSTM", "GRU"])
    def test_both_directions(self, kind: str) -> None:
        plain = self.module(kind, bidirectional=True).double()
        self.compared(plain, self.data((B, T), STARTS["every-row"], layers=2))

    @pytest.mark.parametrize("kind", ["LSTM", "GRU"])
    @pytest.mark.parametrize("starts", ["none", "every-row"])
    def test_without_states(self, kind: str, starts: str) -> None:
        data = self.data((B, T), STARTS[starts]).exclude("h", "c")
        self.compared(self.module(kind).double(), data)

    def test_projection(self) -> None:
        plain = self.module("LSTM", proj_size=2).double()
        data = self.data((B, T), STARTS["every-row"])
        data["h"] = data["h"][..., :2].contiguous()
        self.compared(plain, data)

    @pytest.mark.parametrize("kind", ["LSTM", "GRU"])
    def test_dropout_draws_the_same_numbers(self, kind: str) -> None:
        plain = self.module(kind, layers=2, dropout=0.5).double()
        fast = ft.accelerate(plain, inplace=False).model
        found = []
        for module in (fast, plain):
            torch.manual_seed(1)
            found.append(self.results(module, self.data((B, T), STARTS["every-row"], layers=2)))
        assert_alike(*found, tolerance=1e-11)

    @pytest.mark.parametrize("kind", ["LSTM", "GRU"])
    @pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
    def test_one_step(self, kind: str, shape: tuple[int, ...]) -> None:
        starts = [i % 2 for i in range(max(1, torch.Size(shape).numel()))]
        for layers in (1, 2):
            self.compared(self.module(kind, layers).double(), self.data(shape, starts, layers), recurrent=False)

    def test_by_names_and_vmap(self) -> None:
        """A call with tensors, and vmap, which goes the library's way."""
        plain = self.module("GRU").double()
        fast = ft.accelerate(plain, inplace=False).model
        step = self.data((B,), [0, 1, 0])
        named = {"x": step["x"], "h": step["h"], "is_init": step["is_init"]}
        assert_alike(fast(**named), plain(**named), tolerance=1e-11)

        def of(x: Any) -> Any:
            return fast(x=x, h=step["h"], is_init=torch.zeros(B, 1, dtype=torch.bool))[0]

        several = torch.randn(2, B, I).double()
        assert_alike(torch.vmap(of)(several), [of(x) for x in several], tolerance=1e-11)

    def test_the_library_says_what_is_wrong(self) -> None:
        from torchrl.modules import set_recurrent_mode

        fast = ft.accelerate(self.module("LSTM").double()).model
        data = self.data((B, T), STARTS["every-row"])
        with set_recurrent_mode(True):
            with pytest.raises(KeyError, match="is_init"):
                fast(data.exclude("is_init"))
            with pytest.raises(RuntimeError, match="hidden0"):
                fast(data.exclude("c"))
            with pytest.raises(ValueError, match="at least one batch dim"):
                fast(self.data((), [0]))

    def test_its_own_layers_and_recomputing_are_left_to_it(self) -> None:
        python = self.module("LSTM", python_based=True)
        assert ft.accelerate(python).skipped[""] == "its layers are not computed by fastrnn"
        plain = self.module("GRU")
        fast = ft.accelerate(plain, inplace=False).model
        for module in (plain, fast):  # as if built so, which compiles and takes long
            module.recurrent_backend, module.recurrent_recompute = "scan", "full"
        calls = calls_of([fast.gru])
        data = self.data((B, T), STARTS["every-row"])
        assert_alike(self.results(fast.double(), data), self.results(plain.double(), data), tolerance=1e-11)
        assert not calls

    def test_restored_copied_and_pickled(self) -> None:
        plain = self.module("GRU")
        kind, names = type(plain), list(plain.state_dict())
        module = ft.accelerate(plain).model
        for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert type(again) is type(module)
            assert list(again.state_dict()) == names
            assert type(ft.restore(again)) is kind

    def test_an_unknown_version_is_left_alone_and_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from torchrl.modules import GRUModule

        library: Callable[..., Any] = GRUModule._gru
        monkeypatch.setattr(GRUModule, "_gru", lambda self, x, *rest, **named: library(self, x + 1, *rest, **named))
        module = self.module("GRU")
        report = ft.accelerate(module)
        assert type(module) is GRUModule
        assert "GRUModule of torchrl" in report.skipped[""]
        assert isinstance(module.gru, nn.GRU)
        assert list(report.replaced) == ["gru"]
