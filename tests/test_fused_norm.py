"""Batch norm, sum and activation at once, by kernels: against torch in double precision.

Without a GPU, Triton interprets the kernels, in a process of its own: it is asked to when it is imported.
"""

import copy
import os
import subprocess
import sys
from itertools import cycle, product
from unittest.mock import patch

import pytest
import torch
from torch import nn

from bmvtrack.models import blocks, fused_norm

SHAPES = [(4, 5, 7, 3), (3, 24, 9, 8), (3, 200, 2, 3), (4, 6, 1, 1)]


def check(device: str, dtype: torch.dtype, shapes=SHAPES) -> None:
    """Outputs, gradients and running statistics, for all activations, with and without a sum."""
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.manual_seed(0)
    for shape in shapes:
        for slope in (None, 0.0, 0.01):
            for has_residual in (False, True):
                check_one(shape, slope, has_residual, device, dtype, tolerance)


def check_one(shape, slope, has_residual, device, dtype, tolerance):
    channels = shape[1]

    def some(offset=0.0, more=0):
        values = torch.randn(shape[0], channels + more, *shape[2:]) * 2 + offset
        return values.to(device, dtype, memory_format=torch.channels_last)

    maps, residual = some(offset=10).requires_grad_(), some().requires_grad_()
    gradient = some(more=4)[:, 2 : 2 + channels]  # as of a part of joined maps
    norm = nn.BatchNorm2d(channels).to(device)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    plain = copy.deepcopy(norm).double()
    found = fused_norm.fused_norm(maps, norm, slope, residual if has_residual else None)
    found.backward(gradient)
    exact = [value.detach().double().requires_grad_() for value in (maps, residual)]
    expected = plain(exact[0])
    if has_residual:
        expected = expected + exact[1]
    if slope is not None:
        expected = nn.functional.leaky_relu(expected, slope)
    expected.backward(gradient.double())
    pairs = {
        "result": (found, expected),
        "gradient of the maps": (maps.grad, exact[0].grad),
        "gradient of the weight": (norm.weight.grad, plain.weight.grad),
        "gradient of the bias": (norm.bias.grad, plain.bias.grad),
        "mean": (norm.running_mean, plain.running_mean),
        "variance": (norm.running_var, plain.running_var),
        "number of batches": (norm.num_batches_tracked, plain.num_batches_tracked),
    }
    if has_residual:
        pairs["gradient of the residual"] = residual.grad, exact[1].grad
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    for name, (mine, other) in pairs.items():
        mine, other = mine.detach().double(), other.detach().double()
        error = float((mine - other).norm() / other.norm())
        assert error < tolerance, (name, error, shape, slope, has_residual, dtype)


def interpreted() -> None:
    """What the process of the first test does: with small tiles, so that maps have several."""
    with patch.multiple(fused_norm, _TILE=512, _PROGRAMS=4, _FINAL_PARTS=2):
        cases = product((None, 0.0, 0.01), (False, True))
        for shape, (slope, has_residual) in zip(cycle(SHAPES[::-1]), cases, strict=False):
            check_one(shape, slope, has_residual, "cpu", torch.float32, 1e-5)
        check_one(SHAPES[1], 0.01, True, "cpu", torch.bfloat16, 1e-2)
    print("equal")


def test_kernels_do_what_torch_does_in_three_steps():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "equal\n", done.stderr


TYPES = {
    **dict.fromkeys(["maps", "residual", "result", "gradient", "before", "backward"], "*bf16"),
    **dict.fromkeys(["rows", "channels", "rows_each", "parts", "pitch"], "i32"),
    **dict.fromkeys(["slope", "momentum", "epsilon"], "fp32"),
}
SETTINGS = {"DOWN": 64, "ACROSS": 64, "ACTIVATED": True, "KEPT": True, "HAS_RESIDUAL": True}


def test_kernels_compile_for_a_gpu_where_there_is_none(tmp_path, monkeypatch):
    pytest.importorskip("triton")
    compiler = pytest.importorskip("triton.compiler")
    target = pytest.importorskip("triton.backends.compiler").GPUTarget("cuda", 90, 32)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels = {n: k for n, k in vars(fused_norm._kernels()).items() if n.endswith("_kernel")}
    assert len(kernels) == 6
    for name, kernel in kernels.items():
        given = {n: SETTINGS[n] for n in kernel.arg_names if n in SETTINGS}
        types = {n: "constexpr" if n in given else TYPES.get(n, "*fp32") for n in kernel.arg_names}
        constants = {(kernel.arg_names.index(n),): value for n, value in given.items()}
        source = compiler.ASTSource(fn=kernel, signature=types, constexprs=constants)
        assert len(compiler.compile(source, target=target).asm["cubin"]) > 1000, name


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_on_a_gpu(dtype):
    check("cuda", dtype)


@pytest.mark.gpu
def test_equal_inputs_give_equal_bits_for_large_maps():
    torch.manual_seed(0)
    maps = torch.randn(64, 48, 96, 96, device="cuda", dtype=torch.bfloat16)
    maps = maps.contiguous(memory_format=torch.channels_last).requires_grad_()
    results = []
    for _ in range(2):
        norm = nn.BatchNorm2d(48).cuda()
        assert fused_norm.is_fusible(maps, norm)
        result = blocks.normalized(maps, norm, nn.ReLU())
        gradients = torch.autograd.grad(result.float().square().sum(), [maps, norm.weight])
        results.append([result, *gradients, norm.running_var])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    norm = nn.BatchNorm2d(48).cuda()
    expected = torch.relu(norm(maps.detach().float()))
    torch.testing.assert_close(results[0][0].float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
def test_only_plain_batch_norms_in_training_are_replaced():
    maps = torch.zeros(2, 4, 3, 3, device="cuda").contiguous(memory_format=torch.channels_last)
    norm = nn.BatchNorm2d(4).cuda()
    assert fused_norm.is_fusible(maps, norm)
    assert not fused_norm.is_fusible(maps.contiguous(), norm)
    assert not fused_norm.is_fusible(maps.double(), norm)
    assert not fused_norm.is_fusible(maps.cpu(), norm)
    assert not fused_norm.is_fusible(maps[:1, :, :1, :1], norm)  # torch refuses a single value
    assert not fused_norm.is_fusible(maps, nn.Identity())
    for other in (nn.SyncBatchNorm(4), nn.BatchNorm2d(4, track_running_stats=False)):
        assert not fused_norm.is_fusible(maps, other.cuda())
    assert not fused_norm.is_fusible(maps, norm.eval())
    with fused_norm.not_fused():
        assert not fused_norm.is_fusible(maps, norm.train())
    assert fused_norm.is_fusible(maps, norm)


def test_without_a_gpu_nothing_is_replaced():
    maps = torch.zeros(2, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    assert not fused_norm.is_fusible(maps, nn.BatchNorm2d(4))


if __name__ == "__main__":
    interpreted()
