"""Names of the last release still work, with a warning that names the new one."""

import importlib

import pytest

from lwm import renamed


@pytest.mark.parametrize(("old", "new"), renamed.MODULES.items())
def test_an_old_module_is_the_new_one(old, new):
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        found = importlib.reload(importlib.import_module(old))
    there = importlib.import_module(new)
    names = [name for name in vars(there) if not name.startswith("_")]
    assert names
    assert all(getattr(found, name) is getattr(there, name) for name in names)


@pytest.mark.filterwarnings("ignore:.*the old name goes with the next release:DeprecationWarning")
@pytest.mark.parametrize(("old", "new"), renamed.NAMES.items())
def test_an_old_name_is_the_new_one(old, new):
    module, _, name = old.rpartition(".")
    target, _, attribute = new.rpartition(".")
    there = getattr(importlib.import_module(target), attribute)
    found = importlib.import_module(module)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        assert getattr(found, name) is there


def test_other_names_are_missing_as_ever():
    with pytest.raises(AttributeError, match="module 'lwm' has no attribute 'writing'"):
        renamed.look_up("lwm")("writing")
