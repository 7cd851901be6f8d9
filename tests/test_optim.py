"""Optimizers, beside torch's own."""

import copy
import importlib.util
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import CONTEXT
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pipeline.config import Spec, bind
from pipeline.errors import ConfigError
from pipeline.learning.muon import hidden_weights, orthogonal
from pipeline.learning.optim import OPTIMIZERS

Optimizers = tuple[torch.optim.Optimizer, ...]

HERE = [name for name in OPTIMIZERS if name != "lion" or importlib.util.find_spec("timm")]

# Options, and torch's class with its names for them.
SINGLE: dict[str, tuple[str, dict[str, Any], Any, dict[str, Any]]] = {
    "sgd": ("sgd", {"momentum": 0.9, "nesterov": True}, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "sgd, plain": ("sgd", {}, torch.optim.SGD, {}),
    "adam": ("adam", {"beta1": 0.8, "beta2": 0.99}, torch.optim.Adam, {"betas": (0.8, 0.99)}),
    "adamw": ("adamw", {"eps": 1e-6}, torch.optim.AdamW, {"eps": 1e-6}),
    "rmsprop": ("rmsprop", {"alpha": 0.9, "momentum": 0.5}, torch.optim.RMSprop, {"alpha": 0.9, "momentum": 0.5}),
    "rmsprop, centered": ("rmsprop", {"centered": True}, torch.optim.RMSprop, {"centered": True}),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    filters = [nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3, bias=False), nn.BatchNorm2d(4)]
    return nn.Sequential(*filters, nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3)).double()


def train(model: nn.Module, optimizers: Optimizers, steps: range) -> None:
    """`steps` of the loop, at a rate of 0.01 times the group's factor."""
    for step in steps:
        images = torch.randn(4, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        model(images).square().mean().backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * group.get("factor", 1)
            optimizer.step()
            optimizer.zero_grad()


def torchs_muon(model: nn.Module, **options: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    """torch's Muon on flat copies of the hidden weights: what to call before a step with it, and after."""
    hidden = hidden_weights(model)
    copies = [p.detach().reshape(len(p), -1).clone() for p in hidden]
    optimizer = torch.optim.Muon(copies, lr=0.01, **options)

    def before() -> None:
        for parameter, flat in zip(hidden, copies, strict=True):
            assert parameter.grad is not None
            flat.grad = parameter.grad.reshape(len(parameter), -1).clone()

    def after() -> None:
        optimizer.step()  # type: ignore[no-untyped-call]
        for parameter, flat in zip(hidden, copies, strict=True):
            parameter.data.copy_(flat.reshape(parameter.shape))

    return before, after


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", SINGLE)
def test_an_optimizer_updates_as_torchs_reference(case: str) -> None:
    name, options, reference, theirs = SINGLE[case]
    plain = {"foreach": False} if reference is torch.optim.RMSprop else {"foreach": False, "fused": False}
    models = network(), network()
    train(models[0], OPTIMIZERS[name](models[0], weight_decay=0.02, **options), range(5))
    train(models[1], (reference(models[1].parameters(), weight_decay=0.02, **theirs, **plain),), range(5))
    assert_same(*models)


def test_lion_updates_by_the_sign_of_the_papers_interpolation() -> None:
    pytest.importorskip("timm")
    models = network(), network()
    train(models[0], OPTIMIZERS["lion"](models[0], beta1=0.8, beta2=0.9, weight_decay=0.02), range(5))
    means = [torch.zeros_like(p) for p in models[1].parameters()]
    for step in range(5):
        train(models[1], (), range(step, step + 1))
        with torch.no_grad():
            for p, mean in zip(models[1].parameters(), means, strict=True):
                assert p.grad is not None
                p.sub_(0.01 * ((0.8 * mean + 0.2 * p.grad).sign() + 0.02 * p))
                mean.mul_(0.9).add_(p.grad, alpha=0.1)
                p.grad = None
    assert_same(*models)


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_muon_updates_matrices_and_flattened_filters_as_torchs_and_the_rest_as_adamw(adjust: str) -> None:
    models = network(), network()
    train(models[0], OPTIMIZERS["muon"](models[0], weight_decay=0.02, momentum=0.9, rest_lr=0.5, adjust_lr_fn=adjust), range(5))
    hidden = {id(p) for p in hidden_weights(models[1])}
    rest = torch.optim.AdamW([p for p in models[1].parameters() if id(p) not in hidden], lr=0.005, weight_decay=0.02, foreach=False)
    before, after = torchs_muon(models[1], weight_decay=0.02, momentum=0.9, adjust_lr_fn=adjust)
    for step in range(5):
        train(models[1], (), range(step, step + 1))
        before()
        after()
        rest.step()
        models[1].zero_grad()
    assert_same(*models)


@pytest.mark.parametrize("shape", [(5, 18), (18, 5), (64, 216), (16, 16)])
def test_matrices_orthogonalised_together_have_the_bits_of_torchs_one_by_one(shape: tuple[int, int]) -> None:
    from torch.optim import _muon

    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    coefficients = _muon.DEFAULT_A, _muon.DEFAULT_B, _muon.DEFAULT_C
    alone = [_muon._zeropower_via_newtonschulz(matrix, coefficients, 5, _muon.EPS) for matrix in matrices]
    assert torch.equal(orthogonal(matrices, 5), torch.stack(alone))


def test_muon_updates_several_of_one_shape_each_by_its_own_gradient() -> None:
    models = [nn.Sequential(*(nn.Linear(6, 6, bias=False) for _ in range(4))) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    OPTIMIZERS["muon"](models[0], adjust_lr_fn="original")[0].step()
    torch.optim.Muon(hidden_weights(models[1]), lr=1e-3, adjust_lr_fn="original").step()  # type: ignore[no-untyped-call]
    assert all(torch.equal(p, q) for p, q in zip(hidden_weights(models[0]), hidden_weights(models[1]), strict=True))


def test_muon_can_scale_a_weight_to_unit_rows_before_each_update() -> None:
    model = network()
    before = [p.detach().clone() for p in hidden_weights(model)]
    train(model, OPTIMIZERS["muon"](model, normalize=True, weight_decay=0.0, adjust_lr_fn="original"), range(1))
    for p, old in zip(hidden_weights(model), before, strict=True):
        scaled = old * len(old) ** 0.5 / old.norm()
        step = ((scaled - p.detach()) / 0.01).flatten(1)
        assert 0.5 < torch.linalg.matrix_norm(step, 2) < 2  # what is left is an orthogonal update


@pytest.mark.parametrize("name", ["sgd", "muon"])
def test_norms_and_biases_learn_at_a_rate_of_their_own_and_decay_as_the_weights_do(name: str) -> None:
    rest: dict[str, Any] = {} if name == "sgd" else {"rest": "sgd", "rest_lr": 4.0, "rest_decay": 0.02}
    model = network()
    last = OPTIMIZERS[name](model, weight_decay=0.02, bias_lr=64.0, **rest)[-1]
    rates = {p: (group["factor"], group["factor"] * group["weight_decay"]) for group in last.param_groups for p in group["params"]}
    weights = rest.get("rest_lr", 1.0)
    for p, (factor, decayed) in rates.items():
        assert factor == (64.0 if p.ndim < 2 else weights)
        assert decayed == pytest.approx(0.02 * weights)


def test_the_rest_beside_muon_can_be_nesterovs() -> None:
    models = network(), network()
    rates = {"rest_lr": 0.5, "bias_lr": 2.0, "rest_decay": 0.02, "rest_momentum": 0.8}
    train(models[0], OPTIMIZERS["muon"](models[0], rest="sgd", **rates)[1:], range(3))
    hidden = {id(p) for p in hidden_weights(models[1])}
    others = [p for p in models[1].parameters() if id(p) not in hidden]
    groups = [{"params": [p], "factor": f, "weight_decay": 0.01 / f} for p in others for f in (2.0 if p.ndim < 2 else 0.5,)]
    for p in hidden_weights(models[1]):
        p.requires_grad_(False)
    train(models[1], (torch.optim.SGD(groups, momentum=0.8, nesterov=True, foreach=False),), range(3))
    assert_same(*models)


def test_a_rate_may_be_a_tensor_that_stays_where_it_is() -> None:
    """Which a recorded step needs; the bits are those of a number, but for Muon's, whose product is rounded once more."""
    for name, options in (("sgd", {"momentum": 0.9}), ("adamw", {}), ("muon", {"rest": "sgd"})):
        models = network(), network()
        train(models[0], OPTIMIZERS[name](models[0], **options), range(5))
        optimizers = OPTIMIZERS[name](models[1], **options)
        rates = [(group, torch.zeros((), dtype=torch.float64)) for o in optimizers for group in o.param_groups]
        for step in range(5):
            train(models[1], (), range(step, step + 1))
            for group, rate in rates:
                group["lr"] = rate.fill_(0.01 * group["factor"])
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        if name == "muon":
            assert_same(*models)
        else:
            assert all(torch.equal(p, q) for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_muon_is_for_all_matrices_and_filters_but_embeddings_and_the_last_layer() -> None:
    model = nn.ModuleDict({"see": nn.Conv2d(1, 4, 3), "words": nn.Embedding(7, 4), "think": nn.Linear(4, 4), "say": nn.Linear(4, 2)})
    model.register_parameter("place", nn.Parameter(torch.zeros(1, 5, 4)))
    model.register_parameter("scale", nn.Parameter(torch.zeros(4, 1, 1)))
    chosen = {id(p) for p in hidden_weights(model)}
    assert [name for name, p in model.named_parameters() if id(p) in chosen] == ["see.weight", "think.weight"]


def test_muon_refuses_a_model_without_hidden_weights() -> None:
    with pytest.raises(ConfigError, match=r"train\.optimizer: muon is for hidden weights, .*; choose adamw"):
        OPTIMIZERS["muon"](nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))


@pytest.mark.parametrize("name", HERE)
def test_decay_of_weights_spares_norms_and_biases(name: str) -> None:
    model = network()
    groups = [group for o in OPTIMIZERS[name](model, weight_decay=0.02, decay="weights") for group in o.param_groups]
    decays = {p: group["weight_decay"] for group in groups for p in group["params"]}
    assert decays == {p: 0.02 if p.ndim > 1 else 0.0 for p in model.parameters()}


@pytest.mark.parametrize("name", HERE)
def test_what_is_frozen_is_left_out(name: str) -> None:
    model = network()
    model[0].requires_grad_(False)
    ours = {p for o in OPTIMIZERS[name](model) for group in o.param_groups for p in group["params"]}
    assert ours == {p for p in model.parameters() if p.requires_grad}


def test_a_model_frozen_throughout_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.freeze: no parameter is left"):
        OPTIMIZERS["sgd"](network().requires_grad_(False))


@pytest.mark.parametrize("name", ["sgd", "muon"])
def test_nesterov_without_momentum_is_refused_with_the_options(name: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.optimizer\.nesterov: needs a momentum above 0"):
        bind(OPTIMIZERS, Spec(name=name, options={"momentum": 0.0, "nesterov": True}), what="train.optimizer")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", HERE)
def test_three_steps_and_three_after_loading_are_six(name: str, layout: torch.memory_format) -> None:
    """What is kept is loaded contiguous, as from a file, and torch's fused kernels would read it as channels_last."""
    whole, parted = (network().to(memory_format=layout) for _ in range(2))
    options = {"momentum": 0.9} if name == "sgd" else {}
    train(whole, OPTIMIZERS[name](whole, **options), range(6))
    first = OPTIMIZERS[name](parted, **options)
    train(parted, first, range(3))
    second = OPTIMIZERS[name](parted, **options)
    for before, after in zip(first, second, strict=True):
        after.load_state_dict(contiguous(before.state_dict()))
    train(parted, second, range(3, 6))
    for a, b in zip(whole.parameters(), parted.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", HERE)
def test_what_an_optimizer_keeps_is_found_by_the_parameter(name: str) -> None:
    model = network()
    optimizers = OPTIMIZERS[name](model, **({"momentum": 0.9} if name == "sgd" else {}))
    train(model, optimizers, range(1))
    kept = {p: values for o in optimizers for p, values in o.state.items()}
    assert set(kept) == set(model.parameters())
    assert all(value.shape in ((), p.shape) for p, values in kept.items() for value in values.values())


def test_the_layout_in_memory_does_not_change_muon() -> None:
    models = network(), network()
    models[1].to(memory_format=torch.channels_last)
    for model in models:
        for p in model.parameters():
            values = torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(1))
            p.grad = torch.empty_like(p).copy_(values)
        OPTIMIZERS["muon"](model)[0].step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_parameters_sharded_by_fsdp_are_updated_as_whole_ones(tmp_path: Path) -> None:
    found: Queue[dict[str, float]] = CONTEXT.Queue()
    started = [CONTEXT.Process(target=compare_sharded, args=(rank, 2, tmp_path / "store", found)) for rank in range(2)]
    for process in started:
        process.start()
    differences = found.get(timeout=100)
    for process in started:
        process.join(100)
    assert set(differences) == set(HERE)
    assert all(difference <= 1e-12 for difference in differences.values()), differences


def compare_sharded(rank: int, size: int, store: Path, found: "Queue[dict[str, float]]") -> None:
    """Puts, for each optimizer, the largest difference between the weights after five steps, sharded and not."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    differences = {}
    for name in HERE:
        whole, sharded = network(), network()
        fully_shard(sharded, mesh=init_device_mesh("cpu", (size,)))
        for model in (whole, sharded):
            train(model, OPTIMIZERS[name](model, weight_decay=0.02), range(5))
        differences[name] = max(
            float((p - q.full_tensor()).abs().max())
            for p, q in zip(whole.parameters(), sharded.parameters(), strict=True)
            if isinstance(q, DTensor)
        )
    if rank == 0:
        found.put(differences)
    torch.distributed.destroy_process_group()


def contiguous(state: dict[str, Any]) -> dict[str, Any]:
    state = copy.deepcopy(state)
    for values in state["state"].values():
        for what, value in values.items():
            values[what] = value.contiguous() if isinstance(value, Tensor) else value
    return state


def test_a_first_step_that_overflows_in_float16_leaves_no_trace() -> None:
    parameter = torch.nn.Parameter(torch.ones(1000))
    model = torch.nn.ParameterList([parameter])
    (optimizer,) = OPTIMIZERS["sgd"](model, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu")
    for gradient in (float("inf"), 65536.0):  # at the first scale, and at the one it backs off to, 2
        parameter.grad = torch.full((1000,), gradient)
        scaler.scale(torch.ones(1))
        optimizer.param_groups[0]["lr"] = 0.1
        scaler.step(optimizer)
        scaler.update()
    assert torch.allclose(parameter, torch.full((1000,), 1 - 0.1 * 2.0))
