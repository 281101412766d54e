"""Phase benchmark: contenders are built side by side in one job and take turns, so that their ratios hold.

    blockshock phase=benchmark phase/part=forward model.N=4096 model.B=64 hardware.world_size=2

A part is a class with `entries(execution)` and a file of conf/phase/part that lists its contenders; `turns` times what
they yield. Every result is compared with float64 before it is timed.
"""
