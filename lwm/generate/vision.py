"""Images and videos generated from text, and continued from frames: many together."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from lwm.data import captions
from lwm.errors import UserError, several
from lwm.generate.grammar import FrameLimits
from lwm.generate.loaded import LoadedModel
from lwm.generate.output import Frame, FrameCollector, FrameReader
from lwm.generate.plan import GenerationPlan, VisionPlan
from lwm.generate.sampling import sampler
from lwm.generate.work import Work, Written
from lwm.progress import Progress
from lwm.sampling_params import VisionSampling
from lwm.tokenizer.message import Message, Vision
from lwm.tokenizer.template import render_chat


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawRequest:
    """Images or videos to generate together, one per prompt."""

    prompts: Sequence[str]
    kind: captions.VisionKind = "image"
    frames: int = 1
    """Frames of each, those of `first` included."""
    first: tuple[Vision, ...] = ()
    """An image or video per prompt, which it continues; empty: none."""
    first_as_image: bool = False
    """Generates the first frame from the prompt for an image, as LWM does."""
    sampling: VisionSampling = VisionSampling()
    """Values that are None are the model's own."""
    seed: int = 0
    """Seed of the first; each next one has the next seed."""
    seeds: Sequence[int] = ()
    """A seed for each, in place of `seed`."""

    def __post_init__(self):
        """Takes a single prompt as one, and refuses values out of range.

        Raises:
            UserError: The value.
        """
        object.__setattr__(self, "prompts", several(self.prompts))
        if self.frames < 1 or (self.kind == "image" and self.frames > 1):
            raise UserError(
                f"frames {self.frames}: an image is one frame, and a video at least one"
            )
        object.__setattr__(self, "seeds", tuple(self.seeds))
        if self.seeds and len(self.seeds) != len(self.prompts):
            raise UserError(f"{len(self.seeds)} seeds for {len(self.prompts)} prompts")
        if wrong := [seed for seed in self.seeds if not 0 <= seed < 2**32]:
            raise UserError(f"seed {wrong[0]} must be from 0 to {2**32 - 1}")
        most = 2**32 - max(1, len(self.prompts))
        if not 0 <= self.seed <= most:
            raise UserError(f"seed {self.seed} must be from 0 to {most}")
        if self.first_as_image and self.first:
            raise UserError("the first frame is either given or generated as an image, not both")
        if self.first_as_image and self.frames < 2:
            raise UserError("a first frame generated as an image needs at least 2 frames in all")
        if self.first and len(self.first) != len(self.prompts):
            raise UserError(f"{len(self.first)} first frames for {len(self.prompts)} prompts")
        if len({len(vision.codes) for vision in self.first}) > 1:
            raise UserError("the first images or videos differ in their number of frames")
        if self.frames <= self.given:
            raise UserError(
                f"{self.given} of {self.frames} frames are given; ask for more frames than that"
            )

    def seed_of(self, number: int) -> int:
        """Returns the seed of an image or a video."""
        return self.seeds[number] if self.seeds else self.seed + number

    @property
    def given(self) -> int:
        """Frames that each one starts with."""
        return len(self.first[0].codes) if self.first else 0

    def used(self, default: VisionSampling) -> VisionSampling:
        """Returns the sampling of the frames to generate: guidance of others would cost rows."""
        sampling = self.sampling.over(default)
        image = sampling.video if self.given else sampling.image
        return VisionSampling(image=image, video=image if self.frames == 1 else sampling.video)


def generate_frames(
    model: LoadedModel,
    request: DrawRequest,
    *,
    progress: Progress = lambda done, total: None,
) -> Iterator[tuple[int, Frame]]:
    """Generates frames of all images or videos together; yields each with its prompt's number.

    The frames of a prompt depend on it, its seed and the sampling, not on other prompts.

    Args:
        model: A model with vision ids and a VQGAN.
        request: What to generate.
        progress: Called with the number of ids written to a row, on average.

    Raises:
        UserError: The model cannot generate images, or these do not fit into its context or the
            devices' memory.
    """
    if not request.prompts:
        return
    model.vision.require_decoder()
    if request.first_as_image:
        size, total = (model.grammar.size(count) for count in (1, request.frames))
        image = dataclasses.replace(request, kind="image", frames=1, first_as_image=False)
        first = {}
        for row, frame in _generate(model, image, lambda done, _: progress(done, total)):
            first[row] = Vision(codes=frame.codes[None], is_video=False)
            yield row, frame._replace(is_last=False)
        request = dataclasses.replace(
            request, first=tuple(first[row] for row in sorted(first)), first_as_image=False
        )
        yield from _generate(model, request, lambda done, _: progress(size + done, total))
    else:
        yield from _generate(model, request, progress)


def generate_visions(
    model: LoadedModel,
    request: DrawRequest,
    *,
    progress: Progress = lambda done, total: None,
) -> list[Vision]:
    """Generates whole images or videos, one per prompt; see `generate_frames`."""
    for vision in request.first:
        model.require_frames(vision)
    collector = FrameCollector(model, request.kind, len(request.prompts), request.first)
    for row, frame in generate_frames(model, request, progress=progress):
        collector.add(row, frame)
    return collector.visions()


def _generate(
    model: LoadedModel, request: DrawRequest, progress: Progress
) -> Iterator[tuple[int, Frame]]:
    grammar, given = model.grammar, request.given
    sampling = request.used(model.sampling)
    runs = [opened(model, prompt, request.kind) for prompt in request.prompts]
    openings = [unprompted(model)] * len(runs)
    if request.first:
        given_ids = [begun(model, vision) for vision in request.first]
        runs, openings = (
            [[*run, *ids] for run, ids in zip(given_runs, given_ids, strict=True)]
            for given_runs in (runs, openings)
        )
    together = 2 if sampling.is_guided else 1
    rows = [each[:together] for each in zip(runs, openings, strict=True)]
    longest = max(len(ids) for each in rows for ids in each)
    _require_room(model, longest, request.frames, given)
    plan = _plan(model, request, sampling)
    lane = model.lane(len(rows) * together, together=together)
    requests = [
        Work(plan=dataclasses.replace(plan, seed=request.seed_of(number))).request(*each, lane=lane)
        for number, each in enumerate(rows)
    ]
    readers = [FrameReader(grammar, given=given) for _ in rows]
    written = [0] * len(rows)
    with contextlib.closing(model.engine.gather(requests)) as events:
        for row, event in events:
            if isinstance(event, Written):
                for found in map(readers[row].push, event.ids):
                    if isinstance(found, Frame):
                        yield row, found
                written[row] += len(event.ids)
                progress(sum(written) // len(written), plan.max_tokens)


def _plan(model: LoadedModel, request: DrawRequest, sampling: VisionSampling) -> GenerationPlan:
    """Returns the plan of one image or video, for the first seed."""
    count = model.grammar.size(request.frames - request.given)
    limits = FrameLimits.exactly(request.frames, given=request.given)
    image, video = sampling.image, sampling.video
    return GenerationPlan(
        max_tokens=count,
        seed=request.seed,
        vision=VisionPlan(
            state=model.grammar.start([limits], room=count),
            image=sampler(image.params()),
            video=sampler(video.params()),
            guidance=1.0 if image.guidance is None else image.guidance,
            video_guidance=video.guidance,
        ),
    )


def _require_room(model: LoadedModel, longest: int, frames: int, given: int) -> None:
    """Refuses frames that do not fit into the context after a prompt and the frames given."""
    size = model.grammar.size(1)
    more = max(0, model.context - longest) // size
    if not more:
        raise UserError(
            f"the prompt, with the frames given, has {longest:,} tokens, after which no frame of "
            f"{size} fits into the context of {model.context:,} that {model.name} has; shorten it"
        )
    if frames > given + more:
        raise UserError(
            f"{frames} frames do not fit into the context of {model.context:,} tokens that "
            f"{model.name} has; ask for at most {given + more}"
        )


def opened(
    model: LoadedModel, prompt: str, kind: captions.VisionKind, *, seen: Sequence[Vision] = ()
) -> list[int]:
    """Returns the ids of a chat whose answer starts an image or video.

    Args:
        model: The model.
        prompt: Describes the image or video; after `seen`, it is the question as it stands.
        kind: An image or a video.
        seen: Images and videos before the prompt.

    Raises:
        UserError: The prompt is empty.
    """
    if not prompt.strip():
        raise UserError("the prompt is empty; describe the image or video")
    question = Message("user", (*seen, prompt)) if seen else captions.request(prompt, kind)
    ids = render_chat([question], model.tokenizer, template=model.template, marks=model.marks)
    return [*ids, *model.marks.opening]


def unprompted(model: LoadedModel) -> list[int]:
    """Returns the ids before an image or video without a prompt, for guidance."""
    bos = model.tokenizer.bos_id
    return [*([] if bos is None else [bos]), *model.marks.opening]


def begun(model: LoadedModel, vision: Vision) -> list[int]:
    """Returns the ids of frames, to be followed by more.

    Raises:
        UserError: They are not those of the model.
    """
    model.require_frames(vision)
    ids = model.marks.frames(vision.codes)
    ids[-1] = model.llama.config.tokens.end_of_frame
    return ids.tolist()
