"""What ranks exchange: sums of partial products, and the gradients that tensor parallelism needs.

    chosen = choose(method, multiply, group, batch=B, features=K, width=R, dtype=..., device=..., kernel={...})
    y = chosen.total(x, multiply)            # Σ over the group of multiply(x), (B, K) -> (B, R)

`matmul_all_reduce` runs a matmul and its sum, split so that they overlap where asked; `reductions` are the ways to sum;
`symmetric` is the memory that peers read directly; `choice` measures which way is fastest; `gradients` are the
collectives that autograd passes through.
"""
