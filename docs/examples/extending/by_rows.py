"""One row of the weight at a time."""

import torch

from blockshock.kernels.kernel import Kernel, Shape, into


class ByRows(Kernel):
    name = "by_rows"

    @classmethod
    def unsupported(cls, shape: Shape) -> str | None:
        return None if shape.rows <= 4096 else f"is for at most 4096 rows, not N={shape.rows}; use auto"

    @classmethod
    def worth_trying(cls, shape: Shape) -> bool:
        return shape.device == "cpu"

    def matmul(self, x: torch.Tensor, values: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        return into(out, torch.stack([x @ row for row in self.layout.unpack(values)], dim=1))
