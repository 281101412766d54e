"""Imported last by the server that forks ranks: what its modules have made leaves the garbage collector for good.

A rank's collector would go through half a million objects that no rank frees, a third of a second each time, and each
look at them copies the page they are on, which the rank shares with the server otherwise.
https://docs.python.org/3/library/gc.html#gc.freeze
"""

from __future__ import annotations

import gc

gc.collect()
gc.freeze()
