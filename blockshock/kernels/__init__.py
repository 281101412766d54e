"""The rank-local matmul of one 2:4 half. One file for each value of `method.kernel`; gpu/ holds device code.

kernel = make("auto", mask, period, batch=64, dtype=torch.bfloat16)
values = kernel.adopt(kernel.layout.pack(weight))     # (R, K/2), in the storage from which the kernel multiplies
y = packed_linear(x, values, kernel)                  # differentiable in x and values; `total` sums it over ranks
"""

from blockshock.kernels.autograd import masked_linear, packed_linear
from blockshock.kernels.choice import KERNELS, check_kernel, make
from blockshock.kernels.kernel import Half, Kernel, Shape

__all__ = ["KERNELS", "Half", "Kernel", "Shape", "check_kernel", "make", "masked_linear", "packed_linear"]
