"""Cases of the Triton kernels, run by Triton's interpreter in a process of their own: ``python -m tests.triton_cases``.

With ``cuda`` they run compiled on a GPU; with ``short`` only those worth a GPU's time, since each kernel takes most of
a second to compile. The variable that switches the interpreter on is read when the kernels are defined. Prints a line
of JSON per check: the case, what was compared, the relative error and its limit.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

os.environ["TRITON_INTERPRET"] = "0" if "cuda" in sys.argv else "1"

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from iidlib import augment, augment_ops
from iidlib.engine import fused, norm_ops, triton_launch
from iidlib.networks import ConvBlock
from iidlib.networks import blocks as network_blocks

DEVICE, SHORT = "cuda" if "cuda" in sys.argv else "cpu", "short" in sys.argv
Check = tuple[str, str, float, float]
SINGLE, HALF = 1e-6, 1e-2

launches: list[tuple[str, dict[str, Any]]] = []


def count_launches() -> None:
    launch = triton_launch.launch

    def counted(name: str, x: Tensor, programs: int, arguments: Any, constants: Any, **options: Any) -> bool:
        done = launch(name, x, programs, arguments, constants, **options)
        assert done, "a kernel failed"
        launches.append((name, constants))
        return done

    triton_launch.launch = counted


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu").to(DEVICE)


def error(found: Tensor, expected: Tensor) -> float:
    """Relative error in norm; 1 where shapes differ, or one of the two is not finite."""
    if found.shape != expected.shape:
        return 1.0
    difference = (found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-3)
    return float(difference.detach()) if torch.isfinite(difference) else 1.0


def by_torch(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, relu: bool, pool: int) -> Tensor:
    if x.numel():
        y = F.group_norm(x, x.shape[1], weight, bias)
    else:  # which torch refuses
        y = x * weight[:, None, None] + bias[:, None, None]
    y = y if residual is None else y + residual
    y = torch.relu(y) if relu else y
    return F.avg_pool2d(y, 2) if pool == 2 else y


def compared(
    name: str, shape: Sequence[int], dtype: torch.dtype, *, pool: int, residual: bool = False, relu: bool = True,
    layout: torch.memory_format = torch.channels_last, learns: bool = True,
) -> Iterator[Check]:  # fmt: skip
    """Values and gradients against PyTorch in float64.

    On a GPU one gradient may rarely be off by about 1e-3 although its value is right: of half a million values before
    ReLU, one was within rounding of zero.
    """
    limit = SINGLE if dtype == torch.float32 else HALF
    if shape[2] > 64:  # numpy, as which the interpreter runs, adds 4,290 values one after another
        limit = 10 * SINGLE
    x = (draw(*shape) + 1).to(dtype).contiguous(memory_format=layout)
    weight, bias = draw(shape[1], seed=1) + 1, draw(shape[1], seed=2)
    inputs = [x, weight, bias, *([draw(*shape, seed=3).to(dtype)] if residual else [])]
    twins = [tensor.double().requires_grad_() for tensor in inputs]
    for number, tensor in enumerate(inputs):
        tensor.requires_grad_(learns or number not in (1, 2))
    expected = by_torch(*twins[:3], twins[3] if residual else None, relu, pool)
    before = len(launches)
    if pool == 2:
        found = norm_ops.norm_relu_pool(*inputs)
    else:
        found = norm_ops.norm_relu(*inputs[:3], 1e-5, inputs[3] if residual else None, relu)
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
    yield name, "value", error(found, expected), limit
    cotangent = draw(*found.shape, seed=4).to(dtype)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    gradients = torch.autograd.grad(found, wanted, cotangent, retain_graph=True)
    references = torch.autograd.grad(expected, twins, cotangent.double())
    asked = [reference for reference, tensor in zip(references, inputs, strict=True) if tensor.requires_grad]
    for number, (gradient, reference, tensor) in enumerate(zip(gradients, asked, wanted, strict=True)):
        assert gradient.dtype == tensor.dtype
        yield name, f"gradient {number}", error(gradient, reference), limit
    again = torch.autograd.grad(found, wanted, cotangent)
    yield name, "same bits", float(not all(map(torch.equal, gradients, again))), 0.0
    made = [constants for kernel, constants in launches[before:] if kernel == "backward"]
    if x.numel():
        assert len(made) == 2 and len(launches) - before == 3, "one launch each way"
        assert all(constants["GRAD_AFFINE"] == learns for constants in made)


def sizes_of_networks() -> Iterator[Check]:
    """The maps of ConvNet3 and ResNet18 on images of 32 x 32, and an odd one."""
    single, half = torch.float32, torch.bfloat16
    for shape in ((2, 128, 32, 32), (2, 128, 16, 16), (2, 128, 8, 8), (3, 5, 9, 7)):
        yield from compared(f"pool {shape}", shape, single, pool=2)
    for shape in ((2, 64, 32, 32), (2, 128, 16, 16), (2, 256, 8, 8), (2, 512, 4, 4)):
        yield from compared(f"residual {shape}", shape, single, pool=1, residual=True)
    yield from compared("pool bf16", (2, 128, 32, 32), half, pool=2, learns=False)
    yield from compared("residual bf16", (2, 64, 32, 32), half, pool=1, residual=True)


def against_torch() -> Iterator[Check]:
    single, half = torch.float32, torch.bfloat16
    for shape in (
        (2, 3, 8, 8), (1, 16, 4, 4), (3, 5, 9, 7), (2, 24, 6, 10), (2, 1, 2, 2), (40, 5, 2, 2), (2, 129, 3, 3),
        (1, 3, 66, 65),
    ):  # fmt: skip
        yield from compared(f"pool {shape}", shape, single, pool=2)
    for shape in ((3, 20, 8, 8), (2, 17, 5, 4), (1, 18, 32, 32)):  # two tiles in the last
        yield from compared(f"pool {shape} bf16", shape, half, pool=2)
        yield from compared(f"residual {shape} bf16", shape, half, pool=1, residual=True)
    for residual in (False, True):
        for relu in (False, True):
            for shape in ((2, 3, 8, 8), (40, 5, 1, 1), (3, 19, 3, 5), *([(1, 2, 66, 65)] if residual and relu else [])):
                name = f"norm {shape} {residual=} {relu=}"
                yield from compared(name, shape, single, pool=1, residual=residual, relu=relu)
    for shape in ((3, 5, 6, 6), (0, 4, 6, 6)):
        for residual in (False, True):
            yield from compared(
                f"plain layout {shape} {residual=}", shape, single, pool=1, residual=residual,
                layout=torch.contiguous_format,
            )  # fmt: skip
            yield from compared(f"frozen {shape} {residual=}", shape, single, pool=1, residual=residual, learns=False)
        yield from compared(f"frozen {shape}, pooled", shape, single, pool=2, learns=False)


def weights_alone() -> Iterator[Check]:
    """No gradient of the map is computed where only weights learn, nor one of the weights for the residual alone."""
    x, weight, bias = draw(3, 5, 6, 6), draw(5, seed=1).requires_grad_(), draw(5, seed=2).requires_grad_()
    residual = draw(3, 5, 6, 6, seed=3)
    for number, (wanted, needs) in enumerate(
        (([weight, bias], (False, True, False)), ([residual], (False, False, True)))
    ):
        given = [
            tensor.detach().requires_grad_(any(tensor is one for one in wanted))
            for tensor in (x, weight, bias, residual)
        ]
        asked = [tensor for tensor in given if tensor.requires_grad]
        found = torch.autograd.grad(norm_ops.norm_relu(*given[:3], 1e-5, given[3]).square().sum(), asked)
        assert tuple(launches[-1][1][name] for name in ("GRAD_X", "GRAD_AFFINE", "GRAD_RESIDUAL")) == needs
        expected = torch.autograd.grad(fused.norm_relu(*given[:3], 1e-5, given[3]).square().sum(), asked)
        for mine, theirs in zip(found, expected, strict=True):
            yield "weights alone", f"gradient {number}", error(mine, theirs), SINGLE


def many_networks() -> Iterator[Check]:
    """vmap, with any of the inputs without the batch axis, against a loop; always one launch."""
    stacks = draw(4, 3, 5, 6, 6), draw(4, 5, seed=1), draw(4, 5, seed=2), draw(4, 3, 5, 6, 6, seed=3)

    def function(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return norm_ops.norm_relu(x, weight, bias, 1e-5, residual)

    for mask in range(1, 16):
        dims = tuple(0 if mask >> number & 1 else None for number in range(4))
        given = [
            (stack if dim == 0 else stack[0]).clone().requires_grad_() for stack, dim in zip(stacks, dims, strict=True)
        ]
        before = len(launches)
        found = torch.vmap(function, dims)(*given)
        cotangent = draw(*found.shape, seed=4)
        gradients = torch.autograd.grad(found, given, cotangent)
        assert len(launches) - before == 2, "one launch each way"
        twins = [tensor.detach().double().requires_grad_() for tensor in given]
        loop = []
        for number in range(4):
            x, weight, bias, residual = (
                twin[number] if dim == 0 else twin for twin, dim in zip(twins, dims, strict=True)
            )
            loop.append(fused.norm_relu(x, weight, bias, 1e-5, residual))
        expected = torch.stack(loop)
        yield f"vmap {dims}", "value", error(found, expected), SINGLE
        references = torch.autograd.grad(expected, twins, cotangent.double())
        for number, (mine, theirs) in enumerate(zip(gradients, references, strict=True)):
            yield f"vmap {dims}", f"gradient {number}", error(mine, theirs), SINGLE


def other_inputs() -> Iterator[Check]:
    x, weight, bias = draw(2, 3, 8, 8), draw(3, seed=1), draw(3, seed=2)
    before = len(launches)
    found = norm_ops.norm_relu_pool(x.double(), weight.double(), bias.double())
    assert len(launches) == before, "float64 is computed by PyTorch"
    yield "float64", "value", error(found, fused.norm_relu_pool(x.double(), weight.double(), bias.double())), 0.0
    x[0, 0, 0, 0] = torch.nan
    found = norm_ops.norm_relu_pool(x, weight, bias)
    assert len(launches) == before + 1
    yield "NaN", "is kept", float(not (found[0, 0].isnan().all() and found[0, 1:].isfinite().all())), 0.0
    x = draw(2, 3, 8, 8).requires_grad_()
    (gradient,) = torch.autograd.grad(norm_ops.norm_relu_pool(x, weight, bias).sum(), x)  # an expanded gradient
    (expected,) = torch.autograd.grad(fused.norm_relu_pool(x, weight, bias).sum(), x)
    yield "expanded gradient", "gradient", error(gradient, expected), SINGLE
    try:
        norm_ops.norm_relu_pool(draw(2, 3, 1, 8), weight, bias)
        yield "a row", "is refused", 1.0, 0.0
    except RuntimeError as refusal:
        yield "a row", "is refused", float("too small" not in str(refusal)), 0.0


def the_block() -> Iterator[Check]:
    """A ConvNet's block, as on CUDA: no bias added, gradients of all parameters; also frozen, in half, under vmap."""
    block = ConvBlock(3, 8).double()
    with torch.no_grad():
        for number, parameter in enumerate(block.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=number) + 0.5)
    images, cotangent = draw(4, 3, 8, 8), draw(4, 8, 4, 4, seed=9)
    expected = block(images.double())
    references = dict(
        zip(dict(block.named_parameters()),
            torch.autograd.grad(expected, list(block.parameters()), cotangent.double()), strict=True)
    )  # fmt: skip
    block.float()
    convolve = F.conv2d
    biases: list[object] = []

    def convolved(x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **named: Any) -> Tensor:
        biases.append(bias)
        return convolve(x, weight, bias, *rest, **named)

    network_blocks.F.conv2d = convolved  # type: ignore[assignment]
    for backend in ("compiled", "fused"):
        block.use(backend)
        found = block(images)
        yield f"block {backend}", "value", error(found, expected), SINGLE
        gradients = torch.autograd.grad(found, list(block.parameters()), cotangent)
        for (name, reference), gradient in zip(references.items(), gradients, strict=True):
            if name == "conv.bias":
                yield f"block {backend}", name, float(gradient.shape != (8,) or bool(gradient.any())), 0.0
            else:
                yield f"block {backend}", name, error(gradient, reference), 1e-5
    assert biases == [None, None]
    block.requires_grad_(False)
    given = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(block(given), given, cotangent)
    assert not launches[-1][1]["GRAD_AFFINE"]
    twin = images.double().requires_grad_()
    block.double().use("eager")
    (reference,) = torch.autograd.grad(block(twin), twin, cotangent.double())
    yield "block frozen", "gradient", error(gradient, reference), 1e-5
    block.float().use("fused")
    with torch.autocast(DEVICE, torch.bfloat16):
        half = block(images)
    assert half.dtype == torch.bfloat16
    yield "block bf16", "value", error(half, expected), HALF

    together = {name: torch.stack([parameter, 2 * parameter + 1]) for name, parameter in block.named_parameters()}
    parameters = {name: stack.detach().requires_grad_() for name, stack in together.items()}
    before = len(launches)
    found = torch.vmap(lambda own: functional_call(block, own, (images,)))(parameters)
    assert len(launches) == before + 1
    each = [functional_call(block, {name: one[k] for name, one in parameters.items()}, (images,)) for k in range(2)]
    yield "block vmap", "value", error(found, torch.stack(each)), SINGLE
    mine = torch.autograd.grad(found.square().sum(), list(parameters.values()))
    theirs = torch.autograd.grad(sum(one.square().sum() for one in each), list(parameters.values()))  # type: ignore[arg-type]
    for name, one, other in zip(parameters, mine, theirs, strict=True):
        yield "block vmap", name, error(one, other) if name != "conv.bias" else float(bool(one.any())), 1e-5
    block.use("eager")
    before = len(launches)
    block(images)
    assert len(launches) == before and biases[-1] is block.conv.bias, "an explicit choice is kept"


def the_augmentation() -> Iterator[Check]:
    """Each transform at the ends, in the middle, and at random within its ranges; its gradient; any layout."""
    last = 1 - 2**-24  # the largest float32 below 1
    ends = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, last])] * 3)  # [27, 3]
    random = torch.rand(9, 3, generator=torch.Generator("cpu").manual_seed(7), device="cpu").to(DEVICE)
    u = torch.cat([ends, random])  # [36, 3]
    forms = [(32, 3, torch.channels_last), (15, 1, torch.contiguous_format)]
    if not SHORT:
        forms += [(8, 3, torch.channels_last), (28, 5, torch.contiguous_format), (64, 3, torch.channels_last)]
    for side, channels, form in forms:
        for number, name in enumerate(augment.OPERATIONS):
            drawn = u[:: {64: 5, 32: 2, 28: 2}.get(side, 1)]
            op = torch.full((len(drawn),), number)
            images = draw(len(drawn), channels, side, side, seed=number).contiguous(memory_format=form)
            yield from against_apply(f"{name} {side}x{side}x{channels}", images, op, drawn)
    op = torch.arange(len(u)) % len(augment.OPERATIONS)
    yield from against_apply("all", draw(len(u), 3, 16, 16), op, u)
    subset = 3 + torch.arange(len(u)) % 2  # flip and scale
    yield from against_apply("some", draw(len(u), 3, 16, 16), subset, u, ("flip", "scale"))
    every_other = draw(2 * len(u), 3, 16, 16)[::2]
    yield from against_apply("strided", every_other, op, u)
    before = len(launches)
    augment_ops.apply_drawn(draw(2, 3, 8, 8).double(), op[:2], u[:2])
    augment_ops.apply_drawn(draw(2, 3, 8, 8), op[:2], u[:2], compiled=False)
    augment_ops.apply_drawn(draw(2, 17, 8, 8), op[:2], u[:2])
    assert len(launches) == before, "these are computed by PyTorch"


def against_apply(
    case: str, images: Tensor, op: Tensor, u: Tensor, operations: Sequence[str] = augment.OPERATIONS
) -> Iterator[Check]:
    before = len(launches)
    mine, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    found = augment_ops.apply_drawn(mine, op, u, operations)
    expected = augment.apply_everywhere(theirs, op, u, operations)
    yield case, "value", error(found, expected), SINGLE
    cotangent = draw(*images.shape, seed=9)
    (gradient,) = torch.autograd.grad(found, mine, cotangent)
    (reference,) = torch.autograd.grad(expected, theirs, cotangent)
    yield case, "gradient", error(gradient, reference), SINGLE
    assert len(launches) == before + 2, "one launch each way"
    kept = found.is_contiguous(memory_format=torch.channels_last) == expected.is_contiguous(
        memory_format=torch.channels_last
    )
    yield case, "layout", float(not kept), 0.0


def main() -> None:
    triton_launch.DEVICES = ("cpu", "cuda")
    torch.set_default_device(DEVICE)
    torch.backends.cudnn.allow_tf32 = False
    count_launches()
    groups = [weights_alone, many_networks, other_inputs, the_block, the_augmentation]
    for cases in (sizes_of_networks if SHORT else against_torch, *groups):
        for case, what, found, limit in cases():
            print(json.dumps({"case": f"{cases.__name__}: {case}", "what": what, "error": found, "limit": limit}))
    assert {name for name, _ in launches} == {"forward", "backward", "transform"}
    kinds = {(name, *sorted((key, str(value)) for key, value in constants.items())) for name, constants in launches}
    print(json.dumps({"launches": len(launches), "kernels": len(kinds)}))


if __name__ == "__main__":
    main()
