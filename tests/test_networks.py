"""iidlib.networks: structure, parameter counts, independence of images, and parameters drawn as PyTorch draws them."""

import copy
import functools
import math
from hashlib import sha256

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from iidlib.engine import FusedBlock, compiler_available, norm_relu_pool, triton_launch
from iidlib.engine import fused as fused_kernel
from iidlib.engine.layers import WinogradConv
from iidlib.networks import (
    BACKENDS,
    NETWORKS,
    Network,
    NormReLU,
    build_network,
    conv_blocks,
    draw_parameters_,
    empty_network,
    prepare,
    replaceable,
    set_backend,
)
from tests.factories import noise_images, seeded

noise = functools.partial(noise_images, dtype=torch.float32)

BATCH_NORM = tuple(name for name in NETWORKS if name.endswith("-bn"))
OTHERS = tuple(name for name in NETWORKS if not name.endswith("-bn"))
INSTANCE_NORM = ("convnet1", "convnet2", "convnet3", "convnet4", "vgg11", "resnet18")


def build(name: str, **settings):
    """A network with drawn parameters; ConvNets narrow, where the width does not matter."""
    if name.startswith("convnet"):
        settings.setdefault("width", 8)
    return build_network(name, generator=seeded(), **settings)


def assert_norm_close(a: Tensor, b: Tensor, tolerance: float) -> None:
    assert (a - b).norm() <= tolerance * b.norm()


# Parameter counts, from the field's networks


@pytest.mark.parametrize(
    ("name", "size", "classes", "count"),
    [
        ("convnet3", 32, 10, 320_010),
        ("convnet3", 32, 100, 504_420),
        ("convnet3", 64, 200, 1_938_120),
        ("convnet4", 32, 10, 452_490),
        ("convnet4", 32, 100, 498_660),
        ("convnet4", 64, 200, 857_160),
        ("alexnet", 32, 10, 1_872_202),
        ("alexnet", 32, 100, 2_148_772),
        ("alexnet", 32, 200, 2_456_072),
        ("vgg11", 32, 10, 9_231_114),
        ("vgg11", 32, 100, 9_277_284),
        ("vgg11", 32, 200, 9_328_584),
        ("resnet18", 32, 10, 11_173_962),
        ("resnet18", 32, 100, 11_220_132),
        ("resnet18", 64, 200, 11_578_632),
        ("alexnet-bn", 32, 10, 1_874_122),
        ("vgg11-bn", 32, 10, 9_231_114),
        ("resnet18-bn", 32, 10, 11_173_962),
        ("convnet3-bn", 32, 10, 320_010),
        ("convnet4-bn", 64, 200, 857_160),
        ("mlp", 32, 10, 411_146),
        ("lenet", 32, 10, 62_006),
        # beyond the benchmark's 32 px the linear layer behind the feature map grows with the map, and nothing else
        ("alexnet", 64, 200, 2_456_072 + 3 * 192 * 4 * 4 * 200),
        ("vgg11", 64, 200, 9_328_584 + 3 * 512 * 200),
        ("lenet", 64, 10, 62_006 + (13 * 13 - 5 * 5) * 16 * 120),
    ],
)
def test_parameter_count(name, size, classes, count):
    network = build_network(name, num_classes=classes, image_size=size, generator=seeded())
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("width", [5, 128])
def test_parameter_count_of_a_convnet_of_any_depth_and_width(depth, width):
    network = build_network(
        f"convnet{depth}", num_classes=7, image_size=16, channels=1, width=width, generator=seeded()
    )
    blocks = (1 * 9 + 3) * width + (depth - 1) * (9 * width + 3) * width
    features = width * (16 // 2**depth) ** 2
    assert sum(p.numel() for p in network.parameters()) == blocks + (features + 1) * 7


# Shapes, and the pieces against the whole


@pytest.mark.parametrize(
    ("name", "size", "map_shape", "features"),
    [
        ("convnet1", 32, (8, 16, 16), 2048),
        ("convnet2", 32, (8, 8, 8), 512),
        ("convnet3", 32, (8, 4, 4), 128),
        ("convnet3", 64, (8, 8, 8), 512),
        ("convnet3", 8, (8, 1, 1), 8),
        ("convnet3", 24, (8, 3, 3), 72),
        ("convnet4", 64, (8, 4, 4), 128),
        ("convnet3-bn", 32, (8, 4, 4), 128),
        ("convnet4-bn", 32, (8, 2, 2), 32),
        ("alexnet", 32, (192, 4, 4), 3072),
        ("alexnet-bn", 32, (192, 4, 4), 3072),
        ("vgg11", 32, (512, 1, 1), 512),
        ("vgg11-bn", 32, (512, 1, 1), 512),
        ("resnet18", 32, (512, 4, 4), 512),
        ("resnet18", 64, (512, 8, 8), 2048),
        ("resnet18-bn", 32, (512, 4, 4), 512),
        ("mlp", 32, (128, 1, 1), 128),
        ("mlp", 20, (128, 1, 1), 128),
        ("lenet", 32, (16, 5, 5), 84),
        ("lenet", 16, (16, 1, 1), 84),
        ("lenet", 28, (16, 4, 4), 84),
        ("lenet", 64, (16, 13, 13), 84),
        ("alexnet", 8, (192, 1, 1), 192),
        ("alexnet", 64, (192, 8, 8), 12288),
        ("alexnet-bn", 24, (192, 3, 3), 1728),
        ("vgg11", 64, (512, 2, 2), 2048),
        ("vgg11-bn", 96, (512, 3, 3), 4608),
    ],
)
def test_shapes_and_the_pieces_make_the_whole(name, size, map_shape, features):
    network, images = build(name, num_classes=7, image_size=size).eval(), noise(2, size)
    with torch.no_grad():
        fmap, embedded, logits = network.feature_map(images), network.embed(images), network(images)
        assert fmap.shape == (2, *map_shape)
        assert embedded.shape == (2, features) and network.classifier.in_features == features
        assert logits.shape == (2, 7) and network.num_classes == 7
        assert torch.equal(network.head(fmap), embedded)
        assert torch.equal(network.classifier(embedded), logits)
    assert [m for m in network.modules() if isinstance(m, nn.Linear)][-1] is network.classifier


@pytest.mark.parametrize("name", ["convnet3", "alexnet", "vgg11", "mlp", "convnet3-bn"])
def test_the_embedding_of_these_is_the_flattened_map(name):
    network, images = build(name).eval(), noise()
    assert torch.equal(network.embed(images), network.feature_map(images).flatten(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_gray_images(name):
    assert build(name, channels=1).eval()(noise(1, channels=1)).shape == (1, 10)


def test_resnet_stages_have_the_resolutions_of_the_cifar_form():
    network, x, shapes = build("resnet18"), noise(1), []
    with torch.no_grad():
        for stage in network.trunk:
            x = stage(x)
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [(64, 32, 32), (64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


# Values, against independent versions


@pytest.mark.parametrize("name", ["convnet3", "convnet3-bn"])
def test_convnet_equals_its_definition_one_image_at_a_time(name):
    network, images = build(name).double().eval(), noise(3).double()
    parameters = dict(network.named_parameters())
    for p in network.trunk.parameters():  # norms that do something
        p.data += 0.1 * torch.randn(p.shape, dtype=p.dtype, generator=seeded(2))
    for image, got in zip(images, network(images), strict=True):
        x = image[None]
        for block in ("block1", "block2", "block3"):
            of = {key: parameters[f"trunk.{block}.{key}"] for key in ("conv.weight", "conv.bias")}
            weight, bias = parameters[f"trunk.{block}.norm.weight"], parameters[f"trunk.{block}.norm.bias"]
            x = F.conv2d(x, of["conv.weight"], of["conv.bias"], padding=1)
            if name == "convnet3":
                x = F.instance_norm(x, weight=weight, bias=bias)
            else:  # running mean 0 and variance 1
                x = x / math.sqrt(1 + 1e-5) * weight[:, None, None] + bias[:, None, None]
            x = F.avg_pool2d(F.relu(x), 2)
        expected = F.linear(x.flatten(), network.classifier.weight, network.classifier.bias)
        assert_norm_close(got, expected, 1e-12)


@pytest.mark.parametrize("name", ["resnet18", "resnet18-bn"])
def test_resnet18_equals_torchvision_with_a_small_stem(name):
    norm = nn.BatchNorm2d if name.endswith("-bn") else lambda channels: nn.GroupNorm(channels, channels)
    theirs = torchvision.models.resnet18(num_classes=10, norm_layer=norm)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    ours = build(name)
    state = ours.state_dict()
    assert [v.shape for v in theirs.state_dict().values()] == [v.shape for v in state.values()]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), state.values(), strict=True)))
    with torch.no_grad():
        assert_norm_close(ours.eval()(noise()), theirs.eval()(noise()), 1e-5)


def test_vgg11_equals_torchvision():
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["A"], batch_norm=True)
    ours = build("vgg11-bn")
    layers.load_state_dict(dict(zip(layers.state_dict(), ours.trunk.state_dict().values(), strict=True)))
    with torch.no_grad():
        assert_norm_close(ours.eval().feature_map(noise()), layers.eval()(noise()), 1e-5)


def test_alexnet_and_lenet_equal_their_layers_in_order():
    def run(network, x, steps, padding):
        for step in steps:
            if step == "pool":
                x = F.max_pool2d(x, 2)
            else:
                layer = network.get_submodule(f"trunk.{step}")
                x = F.relu(F.conv2d(x, layer.weight, layer.bias, padding=padding * (layer.kernel_size[0] // 2)))
        return x

    images = noise()
    with torch.no_grad():
        alexnet, lenet = build("alexnet"), build("lenet")
        steps = ("conv1", "pool", "conv2", "pool", "conv3", "conv4", "conv5", "pool")
        assert_norm_close(alexnet.feature_map(images), run(alexnet, images, steps, padding=1), 1e-6)
        fmap = run(lenet, images, ("conv1", "pool", "conv2", "pool"), padding=0)
        assert_norm_close(lenet.feature_map(images), fmap, 1e-6)
        hidden = F.relu(lenet.head.linear2(F.relu(lenet.head.linear1(fmap.flatten(1)))))
        assert_norm_close(lenet.embed(images), hidden, 1e-6)


# Invariances


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("training", [False, True])
def test_no_image_sees_another(name, training):
    network, images = build(name).double().train(training), noise(5).double()
    with torch.no_grad():
        together = network(images)
        apart = torch.cat([network(image[None]) for image in images])
    assert_norm_close(together, apart, 1e-12)


@pytest.mark.parametrize("name", BATCH_NORM)
def test_with_batch_norm_images_see_each_other_in_training_only(name):
    network, images = build(name).double(), noise(5).double()
    with torch.no_grad():
        evaluated, alone = network.eval()(images), network.eval()(images[:2])
        trained, trained_alone = network.train()(images), network.train()(images[:2])
    assert_norm_close(evaluated[:2], alone, 1e-12)
    assert (trained[:2] - trained_alone).norm() > 1e-3 * trained_alone.norm()


@pytest.mark.parametrize("name", INSTANCE_NORM)
def test_instance_norm_ignores_shift_and_scale_of_each_channel(name):
    network, images = build(name).double(), noise().double()
    with torch.no_grad():
        for module in network.trunk.modules():
            if isinstance(module, nn.Conv2d):
                module.weight *= 100  # so that the norm's eps does not matter
        scaled = network(images)
        for module in network.trunk.modules():
            if isinstance(module, nn.Conv2d):
                # Scales of half and double alternate over the channels.
                factors = torch.tensor([0.5, 2.0], dtype=torch.float64).repeat(module.out_channels // 2)
                module.weight *= factors[:, None, None, None]
                if module.bias is not None:
                    module.bias += 3
        assert_norm_close(network(images), scaled, 1e-3)


def test_gradient_of_a_convnet_on_its_images():
    network = build("convnet2", image_size=8, width=4, num_classes=3).double()
    assert torch.autograd.gradcheck(network, noise(2, 8).double().requires_grad_())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_is_used(name):
    network = build(name)
    network(noise(4)).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


# Backends


def test_a_function_of_ones_own_can_take_the_place_of_norm_relu_pool():
    network, images, calls = build("convnet3"), noise(), []
    before = network(images)

    def spy(x, weight, bias, eps):
        calls.append(x.shape[-1])
        return norm_relu_pool(x, weight, bias, eps)

    assert set_backend(network, spy) is network
    assert torch.equal(network(images), before)
    assert calls == [32, 16, 8]
    assert [block.backend for block in conv_blocks(network)] == [spy] * 3


def wide(dtype: torch.dtype = torch.float32) -> Network:
    """A ConvNet that fits the fused kernels."""
    return build("convnet2", image_size=8, width=32, num_classes=3).to(dtype)


def outcome(network: Network) -> Tensor:
    """Logits and gradients as one vector in float64, but those of a convolution's bias, which are zero or rounding."""
    images = noise(5, 8).to(network.classifier.weight.dtype).requires_grad_()
    logits = network(images)
    inputs = [images, *(parameter for name, parameter in network.named_parameters() if not name.endswith("conv.bias"))]
    gradients = torch.autograd.grad(
        logits.square().sum(), inputs
    )  # those of a convolution's bias are zero, or rounding
    return torch.cat([part.detach().double().flatten() for part in (logits, *gradients)])


def apart(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm() / second.norm())


needs_compiler = pytest.mark.skipif(not compiler_available(), reason="no C++ compiler")


@needs_compiler
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_computes_the_same(backend):
    exact = outcome(wide(torch.float64))
    network = set_backend(wide(), backend)
    assert [block.backend for block in conv_blocks(network)] == [backend] * 2
    assert apart(outcome(network), exact) < 1e-4


@needs_compiler
def test_each_backend_is_what_it_says(monkeypatch):
    seen = []
    fused, compiled = FusedBlock.__call__, fused_kernel._Compiled.__call__
    monkeypatch.setattr(FusedBlock, "__call__", lambda self, *given: seen.append("fused") or fused(self, *given))
    monkeypatch.setattr(
        fused_kernel._Compiled, "__call__", lambda self, *given: seen.append("compiled") or compiled(self, *given)
    )
    used = {}
    for backend in BACKENDS:
        seen.clear()
        set_backend(wide(), backend)(noise(5, 8))
        used[backend] = list(seen)
    assert used == {"eager": [], "compiled": ["compiled"] * 2, "fused": ["fused"] * 2}
    seen.clear()
    set_backend(build("convnet2", image_size=8, width=3), "fused")(noise(5, 8))
    assert seen == ["compiled"] * 2, "three channels do not fit"


@needs_compiler
@pytest.mark.parametrize("name", ["vgg11", "resnet18"])
def test_fused_layers_give_what_plain_ones_give(name):
    network, images = build(name).eval(), noise(3)
    plain = copy.deepcopy(network).double()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    assert {module.backend for module in replaceable(set_backend(network, "fused"))} == {"fused"}
    norms = sum(isinstance(module, NormReLU) for module in replaceable(network))
    assert norms == {"vgg11": 8, "resnet18": 20}[name]
    for training in (False, True):  # with and without gradients of the weights, which decides about convolutions
        network.requires_grad_(training)
        assert_norm_close(network(images).double(), plain(images.double()), 1e-5)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_layers_are_not_replaced_while_their_weights_train(monkeypatch):
    network, seen = set_backend(build("resnet18"), "fused"), []
    monkeypatch.setattr(WinogradConv, "fits", staticmethod(lambda x, weight: seen.append(len(weight))))
    network(noise())
    assert not seen
    with torch.no_grad():
        network(noise())
    assert seen == [64] * 4 + [128] * 3 + [256] * 3 + [512] * 3


@pytest.mark.parametrize(("name", "digest"), [("resnet18", "b6690a600264"), ("vgg11", "c59624c2160e")])
def test_names_order_and_initial_values_of_parameters_are_those_of_stored_networks(name, digest):
    """Those of version 0.2.0 and earlier, whose norms and activations were separate modules."""
    state, generator, bound = build(name).state_dict(), seeded(), 0.0
    text = "\n".join(f"{key} {list(value.shape)}" for key, value in state.items())
    assert sha256(text.encode()).hexdigest()[:12] == digest
    for key, value in state.items():
        if "norm" in key:
            assert (value == (1 if key.endswith("weight") else 0)).all()
            continue
        if value.dim() > 1:
            bound = 1 / math.sqrt(value[0].numel())
        assert torch.equal(value, torch.empty(value.shape).uniform_(-bound, bound, generator=generator))


@needs_compiler
def test_backends_can_be_changed_back_and_forth():
    network = wide()
    before, state = outcome(network), copy.deepcopy(network.state_dict())
    found = {backend: outcome(set_backend(network, backend)) for backend in BACKENDS}
    for backend in ("fused", "eager", "compiled", "fused", "eager"):
        assert torch.equal(outcome(set_backend(network, backend)), found[backend])
    assert torch.equal(found["eager"], before)
    assert network.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@needs_compiler
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_copy_has_the_backend_and_can_have_another(backend):
    network = set_backend(wide(), backend)
    before, twin = outcome(network), copy.deepcopy(network)
    assert [block.backend for block in conv_blocks(twin)] == [backend] * 2
    assert torch.equal(outcome(twin), before)
    draw_parameters_(twin, seeded(5))
    assert apart(outcome(twin), before) > 1e-2
    set_backend(twin, "eager")
    assert [block.backend for block in conv_blocks(network)] == [backend] * 2
    assert torch.equal(outcome(network), before)


@needs_compiler
def test_weights_are_loaded_whatever_the_backend():
    network, other = set_backend(wide(), "fused"), wide()
    draw_parameters_(other, seeded(5))
    outcome(network)
    network.load_state_dict(other.state_dict())
    assert apart(outcome(network), outcome(other)) < 1e-4


@pytest.mark.parametrize("backend", ["plain", "", None])
def test_an_unknown_backend_is_refused_and_changes_nothing(backend):
    network = build("convnet2", image_size=8, width=4)
    with pytest.raises(ValueError, match=f"unknown backend {backend!r}; choose eager, compiled, fused, or pass a func"):
        set_backend(network, backend)
    assert [block.backend for block in conv_blocks(network)] == ["eager"] * 2


@pytest.mark.parametrize("name", ["resnet18-bn", "convnet3-bn", "vgg11-bn", "alexnet", "mlp"])
def test_networks_without_such_blocks_stay_as_they_are(name):
    network = build(name)
    before = network.eval()(noise())
    assert not replaceable(network) and set_backend(network, "fused") is network
    assert torch.equal(network(noise()), before)


def test_a_copy_is_independent():
    network = build("convnet3")
    twin = copy.deepcopy(network)
    draw_parameters_(twin, seeded(5))
    assert torch.equal(network(noise()), build("convnet3")(noise()))
    assert not torch.equal(twin(noise()), network(noise()))


# Parameters


@pytest.mark.parametrize("name", NETWORKS)
def test_building_with_a_generator_is_reproducible_and_leaves_the_global_state(name):
    before = torch.get_rng_state()
    first, second, other = (build_network(name, generator=seeded(s)).state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_building_without_a_generator_uses_the_global_state():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, other = build_network("lenet"), build_network("lenet")
        torch.manual_seed(0)
        again = build_network("lenet")
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


@pytest.mark.parametrize("name", ["convnet3", "resnet18-bn", "alexnet", "mlp", "lenet"])
def test_parameters_have_the_distribution_of_the_default_initialisation(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        default = dict(build_network(name).named_parameters())
    for key, drawn in build_network(name, generator=seeded(1)).named_parameters():
        theirs = default[key]
        if ".norm" in key or theirs.unique().numel() == 1:
            assert torch.equal(drawn, theirs)  # ones and zeros
            continue
        module = key.rpartition(".")[0]
        weight = default[f"{module}.weight"]
        bound = 1 / math.sqrt(weight[0].numel())
        assert drawn.abs().max() <= bound
        n = drawn.numel()
        assert drawn.mean().abs() < 5 * bound / math.sqrt(3 * n)
        # The variance of a uniform's square is 4/45 of the bound's fourth power.
        for values in (drawn, theirs):
            assert abs(values.square().mean() / bound**2 - 1 / 3) < 5 * math.sqrt(4 / 45 / n)
        assert not torch.equal(drawn, theirs)
        if n >= 1000:
            assert drawn.max() > 0.99 * bound and drawn.min() < -0.99 * bound


@pytest.mark.parametrize("name", ["convnet3", "convnet3-bn", "resnet18-bn", "lenet"])
def test_draw_parameters_in_place_equals_a_new_network(name):
    network = build(name)
    places = {key: value.data_ptr() for key, value in network.state_dict().items()}
    for p in network.parameters():
        p.data.fill_(7)
    network.train()(noise(4))  # moves the running statistics of batch norm
    network.requires_grad_(False)
    draw_parameters_(network, seeded())
    fresh = build(name).state_dict()
    for key, value in network.state_dict().items():
        assert torch.equal(value, fresh[key]), key
        assert value.data_ptr() == places[key]
    assert not any(p.requires_grad for p in network.parameters())


def test_draw_parameters_resets_the_running_statistics():
    network = build("convnet3-bn")
    network.train()(noise(4) + 5)
    assert network.trunk.block1.norm.running_mean.any() and network.trunk.block1.norm.num_batches_tracked == 1
    draw_parameters_(network, seeded())
    for block in network.trunk:
        assert not block.norm.running_mean.any() and not block.norm.num_batches_tracked
        assert torch.equal(block.norm.running_var, torch.ones(8))


def test_successive_draws_differ():
    network, generator = build("convnet3"), seeded()
    draw_parameters_(network, generator)
    first = network.classifier.weight.clone()
    draw_parameters_(network, generator)
    assert not torch.equal(network.classifier.weight, first)


def test_draw_parameters_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"network is on meta and the generator on cpu; pass torch.Generator"):
        draw_parameters_(build("convnet1").to("meta"), seeded())
    with pytest.raises(TypeError, match="not Embedding"):
        draw_parameters_(nn.Sequential(nn.Linear(2, 2), nn.Embedding(3, 2)), seeded())


# Wrong input


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("convnet33", {}, "unknown network 'convnet33'.*did you mean 'convnet3"),
        ("transformer", {}, "unknown network 'transformer'; choose one of convnet1, "),
        ("convnet3", {"image_size": 28}, r"convnet3 .*multiple of 8 \(8, 16, 24, ...\), got image_size 28"),
        ("convnet4-bn", {"image_size": 40}, "multiple of 16"),
        ("convnet3", {"image_size": 0}, "got image_size 0"),
        ("alexnet", {"image_size": 20}, r"alexnet .*multiple of 8 \(8, 16, 24, ...\), got image_size 20"),
        ("vgg11-bn", {"image_size": 48}, r"multiple of 32 \(32, 64, 96, ...\), got image_size 48"),
        ("lenet", {"image_size": 30}, r"multiple of 4 \(16, 20, 24, ...\), got image_size 30"),
        ("lenet", {"image_size": 12}, r"multiple of 4 \(16, 20, 24, ...\), got image_size 12"),
        ("resnet18", {"image_size": 48}, r"multiple of 32 \(32, 64, 96, ...\)"),
        ("mlp", {"image_size": -1}, "got image_size -1"),
        ("resnet18", {"width": 64}, "only ConvNets have a width.*resnet18"),
        ("convnet3", {"width": 0}, "width must be at least 1, got 0"),
        ("convnet3", {"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ("convnet3", {"channels": 0}, "channels must be at least 1, got 0"),
    ],
)
def test_build_network_says_what_is_wrong(name, settings, message):
    with pytest.raises(ValueError, match=message):
        build_network(name, **settings)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_checked_for_an_image_size_as_it_would_be_built(name):
    for size in (0, 8, 12, 16, 20, 24, 28, 32, 48, 64):
        outcomes = []
        for make in (build_network, empty_network):
            try:
                made = make(name, image_size=size, num_classes=3, channels=3)
            except ValueError as error:
                outcomes.append(str(error))
            else:
                outcomes.append("")
                if make is build_network:
                    assert made(noise(1, size)).shape == (1, 3)
        assert outcomes[0] == outcomes[1] and "\n" not in outcomes[0]
    with pytest.raises(ValueError, match="unknown network 'convnet33'"):
        empty_network("convnet33", image_size=32, num_classes=3, channels=3)


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 1, 32, 32), (3, 32, 32), (2, 3, 32, 64)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"convnet3 was built for images \[B, 3, 32, 32\], got \["):
        build("convnet3")(torch.zeros(shape))


# On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_cuda_generator_builds_on_its_device_and_values_agree_with_the_cpu(name):
    assert next(build_network(name, generator=torch.Generator("cuda")).parameters()).is_cuda
    network, images = build(name).eval(), noise()
    with torch.no_grad():
        expected = network(images)
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        try:
            assert_norm_close(network.cuda()(images.cuda()).cpu(), expected, 1e-4)
        finally:
            torch.backends.cudnn.allow_tf32 = before
    with pytest.raises(ValueError, match="generator on cpu"):
        draw_parameters_(network, seeded())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_with_compiled_kernels_agrees_with_the_cpu_in_double(name):
    """Through the layouts that cuDNN really leaves, with the gradient of the images."""

    def with_gradient(network, images):
        images.requires_grad_()
        out = network(images)
        (gradient,) = torch.autograd.grad(out.square().sum(), images)
        return out.detach().cpu().double(), gradient.cpu().double()

    network, images = build(name).eval(), noise()
    network.requires_grad_(False)
    expected = with_gradient(copy.deepcopy(network).double(), images.double())
    prepared = prepare(network.cuda())
    assert prepared is network and triton_launch.available()
    value, gradient = with_gradient(prepared, images.cuda())
    assert_norm_close(value, expected[0], 1e-4)
    assert_norm_close(gradient, expected[1], 1e-2)  # at ReLU's kink a value within rounding of zero changes much
    assert triton_launch.available(), "no kernel has failed meanwhile"
