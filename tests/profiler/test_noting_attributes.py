"""Attributes of modules are noted while a step is traced, and whoever patched modules before keeps the patch."""

from torch import nn

from profiler.graph.staleness import noting_attributes


def test_noting_what_is_read_leaves_anothers_patch_of_modules_where_it_was(monkeypatch):
    seen = []

    def patched(self, key):
        seen.append(key)
        return object.__getattribute__(self, key)

    monkeypatch.setattr(nn.Module, "__getattribute__", patched, raising=False)
    layer, read = nn.Dropout(0.25), {}
    with noting_attributes(read):
        assert layer.p == 0.25
    assert [value for _, key, value in read.values() if key == "p"] == [0.25]
    assert "p" in seen
    assert nn.Module.__dict__["__getattribute__"] is patched


def test_noting_leaves_nothing_on_modules():
    before = nn.Module.__dict__.get("__getattribute__")
    with noting_attributes({}):
        pass
    assert nn.Module.__dict__.get("__getattribute__") is before
