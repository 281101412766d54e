"""The sparse tensor-core kernel: its index maths on a CPU, with mma.sp emulated lane by lane; its products on a GPU."""

import pytest
import torch

from blockshock.kernels.gpu import sparse_mma_launch
from blockshock.kernels.gpu.sparse_mma_launch import MmaTiles


def random_half(R: int, K: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Small whole numbers, so that every sum is exact: values (R, K/2), places (R, K/2) and the dense weight (R, K)."""
    mask = (torch.rand(R, K // 4, 4, generator=generator).argsort(2) < 2).view(R, K)
    values = torch.randint(1, 9, (R, K // 2), generator=generator).float()
    dense = torch.zeros(R, K)
    dense[mask] = values.flatten()
    places = (mask.nonzero()[:, 1] % 4).view(R, K // 2).to(torch.uint8)
    return values, places, dense


def mma_sp(a: list, b: list, metadata: list[int], selector: int) -> torch.Tensor:
    """D (16, 8) of mma.sp.m16n8k32 from what each of 32 lanes holds: a[lane] 8 values, b[lane] 8, one 32-bit word.

    PTX ISA, fragments of sparse m16n8k32 with .f16: g = lane / 4, t = lane % 4. Of A, registers 0 and 2 hold row g,
    1 and 3 row g + 8; 0 and 1 the two values of the four columns from 4·t, 2 and 3 those of the four from 16 + 4·t.
    Of B, register i has rows 8·i + 2·t and the next of column g. Metadata: lanes 2·selector and 2·selector + 1 of each
    four have columns 0 to 15 and 16 to 31 of row g in bits 0 to 15 and of row g + 8 in the others, two bits a value.
    """
    A, B = torch.zeros(16, 32), torch.zeros(32, 8)
    for lane in range(32):
        g, t = divmod(lane, 4)
        for register in range(4):
            row = g + 8 * (register % 2)
            block, four = divmod(4 * t + 16 * (register // 2), 16)
            word = metadata[4 * g + 2 * selector + block]
            bits = word >> (16 * (register % 2) + four) & 15
            low, high = bits & 3, bits >> 2
            assert low < high, "ordered metadata"
            A[row, 16 * block + four + low] = a[lane][2 * register]
            A[row, 16 * block + four + high] = a[lane][2 * register + 1]
            for e in range(2):
                B[8 * register + 2 * t + e, g] = b[lane][2 * register + e]
    return A @ B


def ldmatrix(rows: list[torch.Tensor]) -> list[torch.Tensor]:
    """What each lane gets of four 8x8 matrices whose 32 rows are given: of matrix i, row g, columns 2·t and 2·t + 1."""
    return [torch.cat([rows[8 * i + lane // 4][lane % 4 * 2 :][:2] for i in range(4)]) for lane in range(32)]


def test_arranged_metadata_and_fragments_reproduce_the_product():
    generator = torch.Generator().manual_seed(7)
    R, K = 32, 256
    values, places, dense = random_half(R, K, generator)
    x = torch.randint(-4, 5, (8, K), generator=generator).float()
    words = sparse_mma_launch.arrange(places)
    assert words.dtype == torch.int32
    assert words.shape == (R // 16, K // 128, 32, 2)
    y = torch.zeros(R, 8)
    for tile in range(R // 16):
        for step in range(K // 128):
            for m in range(4):  # as the kernel's lanes give addresses to ldmatrix
                v = [values[16 * tile + lane % 16, 64 * step + 8 * (2 * m + lane // 16) :][:8] for lane in range(32)]
                b = [x[lane % 8, 128 * step + 8 * (4 * m + lane // 8) :][:8] for lane in range(32)]
                metadata = [int(w) & 0xFFFFFFFF for w in words[tile, step, :, m // 2]]
                y[16 * tile :][:16] += mma_sp(ldmatrix(v), ldmatrix(b), metadata, m % 2)
    assert torch.equal(y, dense @ x.t())


def test_metadata_take_two_bits_a_value():
    places = torch.tensor([0, 3], dtype=torch.uint8).repeat(48, 96)
    words = sparse_mma_launch.arrange(places)
    assert words.numel() * 32 == places.numel() * 2
    assert bool((words == 0xCCCCCCCC - (1 << 32)).all())


def test_tiles_refuse_what_does_not_divide():
    tiles = MmaTiles(rows=128, batch=16, warps=8, split=4)
    assert tiles.fits(256, 512)
    assert not tiles.fits(192, 512)  # rows
    assert not tiles.fits(256, 576)  # steps of 128 columns
    assert not tiles.fits(256, 384)  # fewer steps than blocks along K
    assert not MmaTiles(rows=256, batch=64, stages=8).fits(256, 1024)  # shared memory
    assert not MmaTiles(split=2, cluster=True).fits(256, 1024, capability=(8, 0))
    for wrong in (
        {"rows": 96},
        {"warps": 3},
        {"batch": 12},
        {"stages": 1},
        {"cluster": True},
        {"split": 16, "cluster": True},
    ):
        with pytest.raises(ValueError, match="MmaTiles"):
            MmaTiles(**wrong)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "tiles",
    [
        MmaTiles(),
        MmaTiles(rows=64, batch=32, warps=4, along=2, split=3),
        MmaTiles(rows=128, batch=64, along=4, split=4, stages=4, cluster=True),
    ],
)
def test_product_is_right_and_always_the_same(tiles, dtype):
    device = torch.device("cuda")
    generator = torch.Generator().manual_seed(3)
    for B in (1, tiles.batch, tiles.batch + 9):
        _, places, dense = random_half(384, 1152, generator)
        weight = (torch.randn(dense.shape, generator=generator) * (dense > 0)).to(device, dtype)
        values = weight[dense > 0].view(384, 576)
        x = torch.randn(B, 1152, generator=generator).to(device, dtype)
        metadata = sparse_mma_launch.arrange(places.to(device))
        work = sparse_mma_launch.MmaWorkspace(tiles, 384, B, device)
        outs = [torch.full((B, 384), float("nan"), dtype=dtype, device=device) for _ in range(3)]
        for out in outs:
            sparse_mma_launch.matmul(x, values, metadata, out, tiles, work)
        exact = x.double() @ weight.double().t()
        error, dense_error = (float((y.double() - exact).norm() / exact.norm()) for y in (outs[0], x @ weight.t()))
        assert error <= 1.2 * dense_error
        assert torch.equal(outs[0], outs[1])
        assert torch.equal(outs[0], outs[2])
        assert not work.arrived.any()
