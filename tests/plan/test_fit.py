"""Whether it fits, told before it is loaded; and every way that is named does fit."""

import dataclasses
import random
import re
from typing import cast

import jax
import pytest

from lwm.convert.lwm_config import known_config
from lwm.devices import Machine, machine
from lwm.errors import UserError
from lwm.hub import catalog
from lwm.model.config import Storage
from lwm.plan import fit
from lwm.plan.fit import Plan, mesh_text, options, require_fit
from lwm.plan.memory import inference_need
from lwm.sharding import parse_mesh
from lwm.tokens import TokenSpace

GB = 10**9
ONE = 1, 1, 1, 1


@pytest.fixture(scope="module")
def large():
    config = known_config(catalog.find_model("LWM-Text-1M"))
    assert config is not None
    return config


def gpus(count, memory):
    return Machine(count=count, memory=int(memory * GB), platform="gpu")


def texts(config, here, *, context=4096, rows=1, dtype: Storage = "float32"):
    plan = Plan(config=config, context=context, rows=rows, mesh=ONE, dtype=dtype)
    assert not plan.fits(here)
    return [way.text for way in options(plan, here)]


def test_what_fits_is_let_through(large):
    require_fit(large, name="it", context=4096, mesh=ONE, dtype="float32", machine=gpus(1, 80))
    unknown = Machine(count=1, memory=None, platform="gpu")
    require_fit(large, name="it", context=2**20, mesh=ONE, dtype="float32", machine=unknown)


def test_a_refusal_names_the_parts_and_the_ways_in_one_line(large):
    with pytest.raises(UserError) as caught:
        require_fit(
            large,
            name="LWM-Text-1M",
            context=2**17,
            mesh=ONE,
            dtype="bfloat16",
            machine=gpus(1, 80),
        )
    assert re.fullmatch(
        r"LWM-Text-1M needs 82\.\d\d GB a device for 131,072 tokens in bfloat16 "
        r"\(weights 13\.48 GB, cache 68\.85 GB, activations 0\.\d\d GB\), but the device has "
        r"80\.00 GB; give --dtype int8 or give --dtype int4 or give --context 65536",
        str(caught.value),
    )


def test_ways_in_order_of_cost(large):
    assert texts(large, gpus(8, 20))[0] == "give --mesh 1,1,2,1", "changes no answer"
    assert texts(large, gpus(1, 20))[0] == "give --dtype bfloat16"
    assert texts(large, gpus(1, 15))[0] == "give --dtype int8"
    one, *_ = texts(large, gpus(1, 15), context=2**15, dtype="bfloat16")
    # Of 15 GB, 1.5 are left beside the weights, and 2048 tokens take 1.07.
    assert one == "give --context 2048"
    assert "give --context 4096" in texts(large, gpus(1, 9), context=2**15, dtype="int4")


def test_ways_are_joined_where_one_is_not_enough(large):
    assert "give --mesh 1,1,4,1 --dtype bfloat16" in texts(large, gpus(4, 5))
    assert texts(large, gpus(1, 0.001)) == []
    with pytest.raises(UserError, match="devices with more memory"):
        require_fit(
            large, name="it", context=4096, mesh=ONE, dtype="float32", machine=gpus(1, 0.001)
        )


def test_prompts_that_are_there_can_be_shortened_by_their_owner_only(large):
    with pytest.raises(UserError) as caught:
        require_fit(
            large,
            name="it",
            context=2**17,
            mesh=ONE,
            dtype="bfloat16",
            machine=gpus(1, 80),
            remedy="shorten the prompt",
        )
    message = str(caught.value)
    assert "--context" not in message
    assert message.endswith("--mesh 1,1,2,1 or shorten the prompt")


def test_the_ways_for_many_prompts_are_found_at_once(large, monkeypatch):
    asked = []

    def count(*arguments, **options):
        asked.append(options)
        return inference_need(*arguments, **options)

    monkeypatch.setattr(fit, "inference_need", count)
    plan = Plan(config=large, context=2**20, rows=500, mesh=ONE, dtype="bfloat16")
    assert options(plan, gpus(1, 80))
    assert len(asked) < 5000


def test_a_million_tokens_ask_for_devices(large):
    found = texts(large, gpus(1, 80), context=2**20, dtype="bfloat16")
    assert "take 8 devices of this size with --mesh 1,1,8,1" in found


def test_virtual_devices_bring_no_memory(large, monkeypatch):
    here = Machine(count=8, memory=22 * GB, platform="cpu", is_shared=True)
    assert texts(large, here) == ["give --dtype bfloat16", "give --dtype int8", "give --dtype int4"]
    # Without kernels XLA for CPU widens all weights of few bits to write.
    monkeypatch.setenv("LWM_CPU_KERNELS", "0")
    assert texts(large, here) == ["give --dtype bfloat16"]


def test_every_way_fits_and_none_is_left_out_that_is_cheaper(tiny):
    """Over many models and machines: options as they are printed, read again."""
    rng, joined, seen = random.Random(0), 0, set()
    shapes = [
        tiny(
            tokens=TokenSpace(text=300, vision=90, codes=80),
            dim=64,
            num_layers=layers,
            num_heads=2 * kv_heads,
            num_kv_heads=kv_heads,
            mlp_dim=96,
        )
        for layers, kv_heads in ((1, 8), (12, 3), (12, 8))
    ]
    for _ in range(200):
        config = rng.choice(shapes)
        dtype: Storage = rng.choice(("float32", "bfloat16"))
        platform = rng.choice(["cpu", "gpu"])
        here = Machine(
            count=rng.choice([1, 2, 8]),
            memory=int(10 ** rng.uniform(6, 9)),
            platform=platform,
            is_shared=platform == "cpu",
        )
        plan = Plan(
            config=config,
            context=rng.choice([1000, 4096, 10_000, 2**17]),
            rows=rng.choice([1, 3]),
            mesh=ONE,
            dtype="int8" if dtype == "float32" and rng.random() < 0.3 else dtype,
        )
        if plan.fits(here):
            continue
        found = options(plan, here)
        assert len({way.text for way in found}) == len(found) <= 3
        for way in found:
            given = dict(re.findall(r"--(\w+) (\S+)", way.text))
            seen |= given.keys()
            joined += len(given) > 1
            again = Plan(
                config=config,
                context=int(given.get("context", plan.context)),
                rows=plan.rows,
                mesh=parse_mesh(given.get("mesh", mesh_text(ONE)), 10_000),
                dtype=cast(Storage, given.get("dtype", plan.dtype)),
            )
            assert again == way.plan != plan
            assert again.fits(here)
            assert again.context <= plan.context
            assert again.mesh[1] == 1
            devices = re.search(r"take (\d+) devices", way.text)
            assert (again.devices > here.count) == bool(devices)
            assert devices is None or int(devices[1]) == again.devices
            if way.text.startswith("give --context") and len(given) == 1:
                assert not dataclasses.replace(plan, context=2 * again.context).fits(here) or (
                    2 * again.context >= plan.context
                )
    assert seen == {"mesh", "dtype", "context"}
    assert joined > 10


def test_this_machine_is_asked(tiny):
    here = machine(jax.devices()[:1])
    require_fit(tiny(), name="tiny", context=512, mesh=ONE, dtype="float32", machine=here)
    if here.memory is not None:
        with pytest.raises(UserError, match="tiny needs"):
            require_fit(tiny(), name="tiny", context=2**40, mesh=ONE, dtype="float32", machine=here)
