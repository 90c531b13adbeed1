import copy
import itertools
import pickle
import random
import threading

import pytest
import torch
import torch.nn.utils.prune
from literal_daconv import literal_copy, literal_unit
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from models.daconv import CAUnit, DAConv, DAUnit, decouple_conv_layer, merge_daconv, to_daconv
from models.unet import UNet

PADDING_MODES = ["zeros", "reflect", "replicate", "circular"]


def assert_like_literal(layer, x, atol):
    x = x.requires_grad_()
    nn.init.normal_(layer.contrast_theta)
    nn.init.normal_(layer.detail_theta)
    inputs = [x, *layer.parameters()]
    results = []
    for function in (layer, literal_copy(layer)):
        y = function(x)
        gradients = torch.autograd.grad((y * torch.arange(y.numel(), dtype=y.dtype).cos().view_as(y)).sum(), inputs)
        results.append([y, *gradients])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=atol)


GEOMETRIES = [
    {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    for kernel, stride, dilation in itertools.product([2, 3, 4, 5, 7, (3, 5)], [1, 2], [1, 2])
    for padding in [0, dilation, "own"]
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_layer_is_the_papers_for_every_geometry(groups, training):
    torch.manual_seed(0)
    for geometry in GEOMETRIES:
        geometry = dict(geometry)
        if geometry["padding"] == "own":
            size = geometry["kernel_size"]
            sizes = size if isinstance(size, tuple) else (size, size)
            geometry["padding"] = tuple(geometry["dilation"] * (k // 2) for k in sizes)
        layer = DAConv(4, 8, groups=groups, dtype=torch.float64, **geometry).train(training)
        assert_like_literal(layer, torch.rand(2, 4, 15, 17, dtype=torch.float64), atol=1e-11)


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("padding", [1, (2, 1), 0, "same", "valid"])
def test_layer_is_the_papers_for_every_padding(padding, mode):
    layer = DAConv(3, 5, 3, padding=padding, padding_mode=mode, dtype=torch.float64)
    assert_like_literal(layer, torch.rand(2, 3, 9, 8, dtype=torch.float64), atol=1e-11)


def test_layer_is_the_papers_in_float32():
    assert_like_literal(DAConv(16, 16, 3, padding=1), torch.rand(2, 16, 20, 20), atol=2e-4)


def test_random_configurations_are_the_papers_or_refused_with_a_reason():
    rng = random.Random(0)
    refused = 0
    for _ in range(150):
        groups = rng.choice([1, 2, 3])
        pair = lambda values: rng.choice([rng.choice(values), (rng.choice(values), rng.choice(values))])  # noqa: B023, E731
        arguments = {
            "in_channels": groups * rng.randint(1, 3),
            "out_channels": groups * rng.randint(1, 3),
            "kernel_size": pair([1, 2, 3, 4]),
            "stride": pair([1, 2, 3]),
            "padding": pair([0, 1, 2, 3]),
            "dilation": pair([1, 2, 3]),
            "groups": groups,
            "bias": rng.random() < 0.5,
            "padding_mode": rng.choice(PADDING_MODES),
            "dtype": torch.float64,
        }
        try:
            layer = DAConv(**arguments)
        except ValueError as error:
            assert "own position" in str(error) or "1x1" in str(error)
            refused += 1
            continue
        x = torch.rand(1, arguments["in_channels"], rng.randint(12, 16), rng.randint(12, 16), dtype=torch.float64)
        assert_like_literal(layer, x, atol=1e-11)
    assert 0 < refused < 120


def test_gradcheck():
    layer = DAConv(2, 2, 3, stride=2, padding=1, dtype=torch.float64)
    x = torch.rand(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    for mode in (True, False):
        layer.train(mode)
        names, values = zip(*layer.named_parameters(), strict=True)
        assert len(values) == 6

        def function(x, *values):
            return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))  # noqa: B023

        assert torch.autograd.gradcheck(function, (x, *values))
        assert torch.autograd.gradgradcheck(function, (x, *values))


def test_gradients_per_sample():
    layer = DAConv(2, 3, 3, padding=1, dtype=torch.float64)
    parameters, x = dict(layer.named_parameters()), torch.rand(3, 2, 6, 5, dtype=torch.float64)

    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, (x[None],)).square().sum()

    together = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for index in range(3):
        alone = torch.func.grad(loss)(parameters, x[index])
        for name, gradient in alone.items():
            torch.testing.assert_close(together[name][index], gradient)


def test_fx_traces_it_as_one_step():
    network = nn.Sequential(DAConv(3, 4, 3, padding=1), nn.ReLU())
    traced, x = torch.fx.symbolic_trace(network), torch.rand(1, 3, 8, 8)
    assert torch.equal(traced(x), network(x))
    first = torch.autograd.grad(traced(x).sum(), list(traced.parameters()))
    second = torch.autograd.grad(network(x).sum(), list(network.parameters()))
    assert all(map(torch.equal, first, second))


def test_tracing_leaves_no_stand_in_behind():
    layer, x = DAConv(3, 4, 3, padding=1).eval(), torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        expected = layer.merge()[0]
        torch.fx.symbolic_trace(layer)
        assert torch.equal(layer(x), torch.conv2d(x, expected, layer.merge()[1], padding=1))


def test_an_ensemble_runs_at_once_without_gradients():
    networks, x = [DAConv(3, 4, 3, padding=1).eval() for _ in range(3)], torch.rand(1, 3, 8, 8)
    parameters, buffers = torch.func.stack_module_state(networks)
    with torch.no_grad():
        together = torch.vmap(lambda *state: torch.func.functional_call(networks[0], state, (x,)))(parameters, buffers)
        for one, network in zip(together, networks, strict=True):
            assert torch.allclose(one, network(x), atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_is_the_papers_in_channels_last(bias):
    layer = DAConv(4, 6, 3, padding=1, bias=bias, dtype=torch.float64).to(memory_format=torch.channels_last)
    x = torch.rand(2, 4, 7, 7, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    assert_like_literal(layer, x, atol=1e-11)


@pytest.mark.parametrize(("unit", "sign"), [(CAUnit, 1), (DAUnit, -1)])
def test_units_alone(unit, sign):
    layer = unit(3, 4, (3, 5), padding=(1, 2), bias=False, dtype=torch.float64)
    x = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(layer(x), literal_unit(x, layer, sign))
    assert isinstance(layer, nn.Conv2d) and layer.state_dict().keys() == {"weight"}


def test_mixing_scalars_start_at_sigmoid_of_one():
    layer = DAConv(3, 4, 3)
    assert layer.contrast_theta.item() == layer.detail_theta.item() == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kernel_size": 1}, "1x1"),
        ({"kernel_size": 3, "padding": 3}, "own position"),
        ({"kernel_size": 3, "padding": 1, "dilation": 2}, "own position"),
        ({"kernel_size": 2, "padding": "same", "dilation": 2}, "own position"),
        ({"kernel_size": 3, "groups": 3}, "divisible"),
        ({"kernel_size": 3, "padding": "same", "stride": 2}, "strided"),
        ({"kernel_size": 3, "padding_mode": "mirror"}, "padding_mode"),
    ],
)
def test_impossible_settings_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        DAConv(4, 4, **arguments)


def test_factory_takes_positional_arguments_and_leaves_single_taps_plain():
    layer = decouple_conv_layer(3, 8, 3, 2, 1, 1, 1, False)
    assert isinstance(layer, DAConv) and layer.stride == (2, 2) and layer.merge()[1] is None
    assert layer(torch.rand(1, 3, 8, 8)).shape == (1, 8, 4, 4)
    assert type(decouple_conv_layer(3, 8, 1)) is nn.Conv2d
    for size in (1, 3):
        layer = decouple_conv_layer(3, 8, size, padding_mode="reflect", device="meta", dtype=torch.float64)
        parameter = next(layer.parameters())
        assert layer.padding_mode == "reflect" and parameter.is_meta and parameter.dtype == torch.float64
    assert type(decouple_conv_layer(3, 8, (1, 1))) is nn.Conv2d
    assert type(decouple_conv_layer(3, 8, [1, 1])) is nn.Conv2d
    assert isinstance(decouple_conv_layer(3, 8, (1, 3)), DAConv)


def test_kernel_is_built_once_in_inference_until_something_changes(monkeypatch):
    layer = DAConv(2, 2, 3, padding=1).eval()
    calls = []
    original = DAConv.merge
    monkeypatch.setattr(DAConv, "merge", lambda self: calls.append(1) or original(self))
    x = torch.rand(1, 2, 6, 6)

    def changed(action):
        """Whether `action` makes the next forward build the kernel again, and right."""
        action()
        calls.clear()
        with torch.no_grad():
            torch.testing.assert_close(
                layer(x.to(layer.contrast.weight.dtype)), literal_copy(layer)(x.to(layer.contrast.weight.dtype))
            )
            count = len(calls)
            layer(x.to(layer.contrast.weight.dtype))
        assert len(calls) == count
        return count == 1

    assert changed(lambda: None)
    assert not changed(lambda: None)
    with torch.no_grad():
        assert changed(lambda: layer.contrast.weight.mul_(2))
        assert changed(lambda: layer.detail_theta.fill_(0.3))
    assert changed(lambda: layer.load_state_dict(DAConv(2, 2, 3, padding=1).state_dict()))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(x).sum().backward()
    assert changed(optimizer.step)
    fused = torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)  # leaves no trace in the parameters' versions
    layer(x).sum().backward()
    assert changed(fused.step)
    assert changed(lambda: setattr(layer.detail.weight, "data", torch.rand_like(layer.detail.weight)))
    assert changed(lambda: layer.double())
    assert changed(lambda: layer.half().double())
    assert changed(lambda: layer.load_state_dict(DAConv(2, 2, 3, padding=1).double().state_dict(), assign=True))
    assert changed(lambda: (layer.train(), layer.eval()))
    with torch.inference_mode():
        assert torch.equal(layer(x.double()), layer(x.double()))
    assert changed(lambda: None)  # a kernel made in inference mode is not used outside
    layer(x.double()).sum().backward()  # with gradients recorded, eval mode gives them to all six tensors
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_kept_kernel_is_neither_copied_nor_saved():
    layer = DAConv(2, 2, 3, padding=1).eval()
    with torch.no_grad():
        layer(torch.rand(1, 2, 4, 4))
    assert layer._kept is not None
    assert copy.deepcopy(layer)._kept is None
    assert pickle.loads(pickle.dumps(layer))._kept is None
    assert len(layer.state_dict()) == 6


class Recurrent(nn.Module):
    """A convolution used several times, reached by two names, inside containers."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Conv2d(4, 4, 3, padding=1)
        self.cells = nn.ModuleDict(
            {"a": nn.Sequential(self.gate, nn.Tanh()), "b": nn.Sequential(nn.Conv2d(4, 4, 5, padding=2))}
        )

    def forward(self, x):
        for _ in range(3):
            x = self.cells["a"](x) + self.cells["b"](x) + self.gate(x)
        return x


def with_head(unet):
    """A U-Net whose output is not zero."""
    nn.init.normal_(unet.head.weight)
    return unet


NETWORKS = {
    "resnet": (lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5), (2, 3, 32, 32)),
    "unet": (lambda: with_head(UNet(2, 8)), (1, 3, 33, 40)),
    "recurrent": (Recurrent, (2, 4, 9, 9)),
    "conv": (lambda: nn.Conv2d(3, 4, 3, padding=1), (1, 3, 8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_conversion_keeps_the_function_and_merging_gives_the_plain_network_back(name, dtype, atol):
    torch.manual_seed(0)
    make, size = NETWORKS[name]
    plain = make().to(dtype).eval()
    before = copy.deepcopy(plain.state_dict())
    x = torch.rand(size, dtype=dtype)
    decoupled, report = to_daconv(plain, keep_function=True)
    assert any(isinstance(module, DAConv) for module in decoupled.modules())
    scale = max(plain(x).abs().max().item(), 1)
    assert (decoupled(x) - plain(x)).abs().max() < atol * scale
    for parameter in decoupled.parameters():
        nn.init.normal_(parameter, std=0.05)
    merged = merge_daconv(decoupled)
    assert (merged(x) - decoupled(x)).abs().max() < atol * max(decoupled(x).abs().max().item(), 1)
    assert [type(module) for module in merged.modules()] == [type(module) for module in plain.modules()]
    assert merged.state_dict().keys() == before.keys()
    make().to(dtype).load_state_dict(merged.state_dict(), strict=True)
    assert all(
        torch.equal(value, plain.state_dict()[key]) for key, value in before.items()
    )  # the original is untouched
    assert report.replaced and not set(report.replaced) & set(report.left)


def test_shared_modules_stay_shared():
    decoupled, report = to_daconv(Recurrent())
    assert decoupled.gate is decoupled.cells["a"][0] and isinstance(decoupled.gate, DAConv)
    assert report.replaced == ["gate", "cells.b.0"]
    merged = merge_daconv(decoupled)
    assert merged.gate is merged.cells["a"][0] and type(merged.gate) is nn.Conv2d


def test_fresh_conversion_starts_like_two_fresh_convolutions():
    torch.manual_seed(0)
    layer, _ = to_daconv(nn.Conv2d(8, 8, 3, padding=1))
    assert isinstance(layer, DAConv) and not torch.equal(layer.contrast.weight, layer.detail.weight)


def test_conversion_reports_what_it_leaves_and_why():
    class Special(nn.Conv2d):
        pass

    hooked = nn.Conv2d(4, 4, 3, padding=1)
    hooked.register_forward_hook(lambda *arguments: None)
    tied = nn.Conv2d(4, 4, 3, padding=1)
    twin = nn.Conv2d(4, 4, 3, padding=1)
    twin.weight = tied.weight
    network = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3, padding=3),
        Special(4, 4, 3, padding=1),
        nn.ConvTranspose2d(4, 4, 2),
        nn.utils.spectral_norm(nn.Conv2d(4, 4, 3, padding=1)),
        tied,
        twin,
        DAConv(4, 4, 3, padding=1),
        nn.ReLU(),
        hooked,
    )
    decoupled, report = to_daconv(network)
    assert report.replaced == ["0"]
    reasons = {
        "1": "1x1",
        "2": "own position",
        "3": "subclass",
        "4": "two-dimensional",
        "5": "computed",
        "6": "shared",
        "7": "shared",
        "8": "already",
        "10": "hooks",
    }
    assert report.left.keys() == reasons.keys()
    assert all(reasons[name] in reason for name, reason in report.left.items())
    assert decoupled[6].weight is decoupled[7].weight


def test_conversion_keeps_mode_device_dtype_and_frozen_parameters():
    conv = nn.Conv2d(4, 4, 3, padding="same", padding_mode="reflect", bias=False, dtype=torch.float64).eval()
    conv.requires_grad_(False)
    layer, _ = to_daconv(conv, keep_function=True)
    assert not layer.training and not any(parameter.requires_grad for parameter in layer.parameters())
    assert layer.contrast.weight.dtype == torch.float64 and layer.padding_mode == "reflect" and layer.merge()[1] is None
    back = merge_daconv(layer)
    torch.testing.assert_close(back.weight, conv.weight, atol=1e-15, rtol=1e-14)
    assert not back.weight.requires_grad and not back.training and back.padding == "same"


def test_a_frozen_bias_stays_frozen_and_alone():
    conv = nn.Conv2d(2, 2, 3, padding=1)
    conv.bias.requires_grad_(False)
    layer, _ = to_daconv(conv)
    assert layer.contrast.weight.requires_grad and not layer.detail.bias.requires_grad
    back = merge_daconv(layer)
    assert back.weight.requires_grad and not back.bias.requires_grad


def test_nothing_to_convert_or_merge_is_an_error():
    with pytest.raises(ValueError, match="no convolution to replace in Linear"):
        to_daconv(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="1x1"):
        to_daconv(nn.Sequential(nn.Conv2d(2, 2, 1)))
    with pytest.raises(ValueError, match="itself: decoupled already"):
        to_daconv(DAConv(2, 2, 3))
    pruned = nn.Sequential(nn.utils.prune.l1_unstructured(nn.Conv2d(2, 2, 3), "bias", 0.5), nn.Conv2d(2, 2, 3))
    with pytest.raises(ValueError, match="Sequential cannot be copied"):
        to_daconv(pruned)
    first, second = DAConv(2, 2, 3), DAConv(2, 2, 3)
    second.contrast.weight = first.contrast.weight
    with pytest.raises(ValueError, match="0 shares a parameter"):
        merge_daconv(nn.Sequential(first, second))
    with pytest.raises(ValueError, match="holds no DAConv: it is a plain network already"):
        merge_daconv(nn.Conv2d(2, 2, 3))


def test_autocast_runs_the_convolution_in_bfloat16():
    layer = DAConv(4, 4, 3, padding=1)
    x = torch.rand(1, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), atol=0.05, rtol=0.05)


def test_the_kernel_is_not_taken_for_a_parameter():
    layer = DAConv(2, 3, 3)
    for name in ("weight", "bias"):
        with pytest.raises(AttributeError, match=f"initialise contrast.{name} and detail.{name}"):
            getattr(layer, name)
    with pytest.raises(AttributeError):
        layer.stride = (2, 2)  # would not be heeded


def test_conversion_leaves_what_was_changed_by_hand_and_merging_refuses_hooks():
    patched, grown, plain = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
    patched._conv_forward = lambda x, weight, bias: x
    grown.adapter = nn.Linear(2, 2)
    network, report = to_daconv(nn.Sequential(patched, grown, plain))
    assert report.replaced == ["2"]
    assert "_conv_forward" in report.left["0"] and "adapter" in report.left["1"]
    network[2].register_forward_hook(lambda module, inputs, output: 0 * output)
    with pytest.raises(ValueError, match="2 has hooks"):
        merge_daconv(network)


def test_padding_set_by_hand_is_understood():
    conv = nn.Conv2d(3, 3, 3)
    conv.padding = 1
    layer, _ = to_daconv(conv, keep_function=True)
    x = torch.rand(1, 3, 6, 6)
    torch.testing.assert_close(layer(x), conv(x), atol=1e-5, rtol=0)


def test_a_network_that_cannot_be_copied_is_refused():
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1))
    network.lock = threading.Lock()
    with pytest.raises(ValueError, match="Sequential cannot be copied"):
        to_daconv(network)


def test_forward_mode_and_compilation():
    layer = DAConv(2, 3, 3, padding=1, dtype=torch.float64)
    parameters = dict(layer.named_parameters())
    tangents = {name: torch.rand_like(parameter) for name, parameter in parameters.items()}
    x = torch.rand(1, 2, 5, 5, dtype=torch.float64)

    def function(parameters):
        return torch.func.functional_call(layer, parameters, (x,))

    _, tangent = torch.func.jvp(function, (parameters,), (tangents,))
    shifted = [{name: parameters[name] + sign * 1e-6 * tangents[name] for name in parameters} for sign in (1, -1)]
    torch.testing.assert_close(tangent, (function(shifted[0]) - function(shifted[1])) / 2e-6, atol=1e-7, rtol=1e-6)
    compiled = torch.compile(layer.eval(), backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x))


def test_merging_leaves_the_random_state_alone_and_trains_what_either_unit_trained():
    layer = DAConv(2, 2, 3)
    layer.contrast.requires_grad_(False)
    before = torch.get_rng_state()
    merged = merge_daconv(layer)
    assert torch.equal(before, torch.get_rng_state())
    assert merged.weight.requires_grad and merged.bias.requires_grad


def test_the_memory_format_is_kept_both_ways():
    conv = nn.Conv2d(4, 4, 3, padding=1).to(memory_format=torch.channels_last)
    layer, _ = to_daconv(conv)
    assert layer.contrast.weight.is_contiguous(memory_format=torch.channels_last)
    merged = merge_daconv(layer)
    assert merged.weight.is_contiguous(memory_format=torch.channels_last)
    assert merge_daconv(layer.to(memory_format=torch.contiguous_format)).weight.is_contiguous()
