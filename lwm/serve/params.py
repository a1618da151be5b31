"""Sampling of answers, from the fields of requests."""

import dataclasses
import secrets

from lwm.generate.loaded import LoadedModel
from lwm.sampling_params import FrameSampling, SamplingParams, VisionSampling
from lwm.serve.errors import ApiError
from lwm.serve.schema import FrameOptions, Sampling

_COLDEST = 1e-4
"""Lower temperatures overflow logits; they take the likeliest token."""


def text_sampling(body: Sampling, max_tokens: int | None) -> SamplingParams:
    """Returns the sampling of a request's text; without a seed it is another one each time.

    Raises:
        UserError: A value is out of range.
    """
    temperature = 1.0 if body.temperature is None else body.temperature
    seed = secrets.randbits(32) if body.seed is None else body.seed
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=0.0 if temperature < _COLDEST or body.top_p == 0 else temperature,
        top_k=max(0, body.top_k or 0),  # others write -1 for all
        top_p=body.top_p or 1.0,
        min_p=body.min_p or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_biases(body.logit_bias or {}),
        seed=seed % 2**32,
        stop_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        min_tokens=body.min_tokens or 0,
        stop=tuple(each for each in stop if each),
    )


def _biases(given: dict[str, float]) -> dict[int, float]:
    """Returns biases by id, which JSON writes as texts.

    Raises:
        ApiError: A key is no id.
    """
    if wrong := [key for key in given if not (key.isascii() and key.isdecimal() and len(key) < 10)]:
        raise ApiError(
            f"logit_bias has the key {wrong[0][:60]!r}, which is no id", param="logit_bias"
        )
    return {int(key): value for key, value in given.items()}


def seeded(params: SamplingParams, count: int) -> list[SamplingParams]:
    """Returns the sampling of so many answers; each next one has the next seed."""
    return [
        dataclasses.replace(params, seed=(params.seed + number) % 2**32) for number in range(count)
    ]


def vision_sampling(
    model: LoadedModel, image: FrameOptions | None, video: FrameOptions | None
) -> VisionSampling:
    """Returns the sampling of images and videos within an answer, which has no guidance."""
    given = VisionSampling(image=frame_sampling(image), video=frame_sampling(video))
    return given.over(VisionSampling(image=_UNGUIDED, video=_UNGUIDED)).over(model.sampling)


_UNGUIDED = FrameSampling(guidance=1.0)


def frame_sampling(options: FrameOptions | None) -> FrameSampling:
    """Returns the sampling of frames that a request asks for; a value that is None is not."""
    if options is None:
        return FrameSampling()
    temperature = options.temperature
    if temperature is not None and temperature < _COLDEST:
        temperature = 0.0
    return FrameSampling(temperature=temperature, top_k=options.top_k, top_p=options.top_p)
