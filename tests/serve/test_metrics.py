"""Metrics: names that dashboards ask for, times of answers, and a form that Prometheus reads."""

import threading
import types
from typing import Any

import jax
import pytest
from prometheus_client.parser import text_string_to_metric_families

import lwm
from lwm.generate.answer import Answer
from lwm.sampling_params import SamplingParams
from lwm.serve.config import MediaConfig
from lwm.serve.media import MediaReader
from lwm.serve.metrics import Metrics, metrics_of

ASKED_FOR = [
    "vllm:e2e_request_latency_seconds_bucket",
    "vllm:generation_tokens_total",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:prefix_cache_hits_total",
    "vllm:prefix_cache_queries_total",
    "vllm:prompt_tokens_total",
    "vllm:request_decode_time_seconds_sum",
    "vllm:request_generation_tokens_bucket",
    "vllm:request_params_max_tokens_bucket",
    "vllm:request_prefill_time_seconds_sum",
    "vllm:request_prompt_tokens_bucket",
    "vllm:request_queue_time_seconds_sum",
    "vllm:request_success_total",
    "vllm:time_to_first_token_seconds_bucket",
]
"""Series in vLLM's Grafana boards, which count requests."""
WATCHED = [
    "vllm:kv_cache_usage_perc",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:cache_config_info",
    "llamacpp:requests_processing",
    "llamacpp:requests_deferred",
    "llamacpp:n_decode_total",
    "lwm:frames_encoded_total",
    "lwm:media_cache_hits_total",
]


def read(metrics):
    """Returns all samples, and those of one label by its value."""
    found = {}
    for family in text_string_to_metric_families(metrics.text()):
        for sample in family.samples:
            assert sample.labels.pop("model_name") == 'a "tiny" \\ model\nof two lines'
            assert sample.labels.pop("engine") == "0"
            label = tuple(sample.labels.values())
            assert (sample.name, label) not in found
            found[sample.name, label] = sample.value
            if label[:1] and sample.name.endswith("_info"):
                continue
            found.setdefault((sample.name, ()), sample.value)
    return found


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def metrics(clock):
    return Metrics('a "tiny" \\ model\nof two lines', clock=clock)


def test_all_that_dashboards_ask_for_is_there_from_the_start(metrics):
    names = {name for name, _ in read(metrics)}
    assert set(ASKED_FOR) <= names
    lines = metrics.text().splitlines()
    kinds = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(kinds) == len(set(kinds))


def test_times_of_an_answer_are_those_of_the_clock(metrics, clock):
    metrics.asked(3)
    times = metrics.started(600, 128)
    clock.now += 2
    times.reads()
    clock.now += 3
    times.reads()
    clock.now += 1
    times.writes(1)
    clock.now += 4
    times.writes(8)
    clock.now += 0.5
    times.writes(0)
    times.ends("length", 512)
    times.ends(None)
    found = read(metrics)

    def total(name):
        assert found[f"vllm:{name}_count", ()] == (1 if "inter" not in name else 8)
        return found[f"vllm:{name}_sum", ()]

    assert total("request_queue_time_seconds") == 2
    assert total("time_to_first_token_seconds") == 6
    assert total("request_prefill_time_seconds") == 4
    assert total("request_decode_time_seconds") == 4.5
    assert total("request_inference_time_seconds") == 8.5
    assert total("e2e_request_latency_seconds") == 10.5
    assert total("inter_token_latency_seconds") == 4
    assert total("request_prompt_tokens") == 600
    assert total("request_generation_tokens") == 9
    assert total("request_params_max_tokens") == 128
    assert total("request_params_n") == 3
    for name, value in {
        "vllm:prompt_tokens": 600,
        "vllm:generation_tokens": 9,
        "vllm:prefix_cache_queries": 600,
        "vllm:prefix_cache_hits": 512,
        "vllm:num_preemptions": 0,
        "llamacpp:prompt_tokens": 88,
        "llamacpp:prompt_seconds": 4,
        "llamacpp:tokens_predicted": 9,
        "llamacpp:tokens_predicted_seconds": 4,
    }.items():
        assert found[f"{name}_total", ()] == value
    success = "vllm:request_success_total"
    assert [found[success, (reason,)] for reason in ("length", "stop", "abort")] == [1, 0, 0]


def test_an_answer_whose_client_has_gone_counts_as_that_only(metrics, clock):
    for count in (0, 2):
        times = metrics.started(10, 5)
        times.writes(count)
        times.ends(None)
    found = read(metrics)
    assert found["vllm:request_success_total", ("abort",)] == 2
    assert found["vllm:generation_tokens_total", ()] == 2
    assert found["vllm:e2e_request_latency_seconds_count", ()] == 0


def test_buckets_grow_and_hold_all(metrics, clock):
    for seconds in (0.0005, 0.3, 0.3, 90.0, 5000.0):
        times = metrics.started(10, 5)
        clock.now += seconds
        times.writes(1)
    found = read(metrics)
    name = "vllm:time_to_first_token_seconds_bucket"
    bounds = [key for key in found if key[0] == name and key[1]]
    values = [found[key] for key in bounds]
    assert values == sorted(values)
    assert bounds[-1][1] == ("+Inf",)
    assert [found[name, (le,)] for le in ("0.001", "0.25", "0.5", "80.0", "160.0", "+Inf")] == [
        *(1, 1, 3, 3, 4, 5)
    ]


def test_values_are_read_when_they_are_asked_for(metrics):
    queue = []
    metrics.watch("vllm:num_requests_waiting", "gauge", "Requests in line", lambda: len(queue))
    metrics.watch("lwm:chunks", "counter", "Chunks", lambda: 7 * len(queue))
    assert read(metrics)["vllm:num_requests_waiting", ()] == 0
    queue += [1, 2]
    assert read(metrics)["vllm:num_requests_waiting", ()] == 2
    assert read(metrics)["lwm:chunks_total", ()] == 14


def test_no_count_of_threads_is_lost(metrics):
    def work():
        for _ in range(200):
            times = metrics.started(4, 2)
            times.writes(1)
            times.writes(1)
            times.ends("stop")
            metrics.count("lwm:refusals", reason="429")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        read(metrics)
    found = read(metrics)
    assert found["vllm:request_success_total", ("stop",)] == 1600
    assert found["vllm:generation_tokens_total", ()] == 3200
    assert found["lwm:refusals_total", ("429",)] == 1600


def test_a_service_is_read_as_it_is():
    """With a model's own engine and reader of media."""
    model = lwm.load("tiny-vision")
    reader = MediaReader(model, MediaConfig())
    open_, waiting = [1, 2, 3], [2]
    service: Any = types.SimpleNamespace(
        name='a "tiny" \\ model\nof two lines', model=model, media=reader, open=open_, num_waiting=1
    )
    metrics = metrics_of(service)
    before = read(metrics)
    assert {name for name, _ in before} >= set(WATCHED)
    assert before["vllm:num_requests_running", ()] == len(open_) - len(waiting)
    used = []

    def note(done, total):
        used.append(read(metrics)["vllm:kv_cache_usage_perc", ()])

    list(Answer(model, [5] * 300, SamplingParams(max_tokens=9), progress=note))
    jax.jit(lambda x: x * 1.2345)(4.0)
    found = read(metrics)
    assert 0 < max(used) <= 1
    assert found["lwm:chunks_total", ()] == 1
    assert found["lwm:burst_steps_total", ()] == 9
    assert found["llamacpp:n_decode_total", ()] == 10
    assert found["lwm:compile_seconds_total", ()] > before["lwm:compile_seconds_total", ()]
