"""The rank-local matmul of one 2:4 half. One file for each value of `method.kernel`; gpu/ holds device code.

kernel = make("auto", half_mask, period, batch=64, dtype=torch.bfloat16)
values = kernel.adopt(kernel.layout.pack(weight))     # (R, K/2), in the storage from which the kernel multiplies
y = packed_linear(x, values, kernel)                  # differentiable in x and values; `total` sums it over ranks
"""

from blockshock.kernels.autograd import masked_linear, packed_linear
from blockshock.kernels.choice import check_kernel, make
from blockshock.kernels.kernel import Kernel

__all__ = ["Kernel", "check_kernel", "make", "masked_linear", "packed_linear"]
