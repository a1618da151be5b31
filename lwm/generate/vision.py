"""Images and videos drawn from words, and from images: many together, frame by frame."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8

from lwm.data import captions
from lwm.errors import UserError
from lwm.generate.engine import Session, chunks
from lwm.generate.grammar import FrameLimits
from lwm.generate.loaded import LoadedModel
from lwm.generate.output import Frame, FrameReader
from lwm.generate.plan import GenerationPlan, VisionPlan
from lwm.generate.sampling import Sampler, sampler
from lwm.progress import Progress
from lwm.sampling_params import FrameSampling, VisionSampling
from lwm.tokenizer.message import Vision
from lwm.tokenizer.template import render_chat


def draw(
    model: LoadedModel,
    prompts: Sequence[str],
    *,
    kind: captions.VisionKind,
    frames: int = 1,
    first: Sequence[Vision] | None = None,
    drawings: VisionSampling = VisionSampling(),
    seeds: Sequence[int] | None = None,
    progress: Progress = lambda done, total: None,
) -> Iterator[tuple[int, Frame]]:
    """Draws an image or a video for each prompt, all together; yields frames when they are done.

    What is drawn for a prompt depends on it, its seed and how it is drawn; not on the others.

    Args:
        model: Sees, and has a VQGAN.
        prompts: What is to be seen.
        kind: Which of the two is asked for.
        frames: How many.
        first: Images or videos that these go on from, one for each prompt; their frames count.
        drawings: How.
        seeds: One for each prompt; None: 0, 1, 2, …
        progress: Told how many ids of how many are written in each row.

    Raises:
        UserError: The model cannot draw, or this does not fit into its context or the memory.
    """
    if not prompts:
        return
    seeds = list(range(len(prompts)) if seeds is None else seeds)
    grammar, given = model.grammar, _given(first)
    _require_frames(kind, frames, given)
    _require_seeds(seeds)
    drawings = _in_use(drawings.over(model.drawings), frames, given)
    runs = [_prompt(model, prompt, kind) for prompt in prompts]
    openings = [_start(model)] * len(runs)
    if first is not None:
        begun = [_begun(model, vision) for vision in first]
        runs, openings = (
            [[*run, *ids] for run, ids in zip(given_runs, begun, strict=True)]
            for given_runs in (runs, openings)
        )
    rows = [*runs, *openings] if drawings.are_guided else runs
    count, longest = grammar.size(frames - given), max(map(len, rows))
    _require_room(model, longest, frames, given)
    slots = sum(chunks(longest)) + count
    model.require_memory(slots, rows=len(rows))
    session = Session(model.llama, model.mesh, rows=len(rows), slots=slots)
    session.read(rows)
    limits = [FrameLimits.exactly(frames, given=given)] * len(rows)
    plan = GenerationPlan(
        max_tokens=count,
        seed=seeds * (len(rows) // len(runs)),
        vision=VisionPlan(
            grammar=grammar,
            state=grammar.start(limits, room=count),
            image=_sampler(drawings.image),
            video=_sampler(drawings.video),
            guidance=drawings.image.guidance if drawings.are_guided else None,
            video_guidance=drawings.video.guidance if drawings.are_guided else None,
        ),
    )
    readers = [FrameReader(grammar, given=given) for _ in runs]
    written = 0
    for burst in session.generate(plan):
        for row, reader in enumerate(readers):
            for found in map(reader.push, burst.ids[row].tolist()):
                if isinstance(found, Frame):
                    yield row, found
        written += burst.ids.shape[1]
        progress(written, count)


def _require_frames(kind: captions.VisionKind, frames: int, given: int) -> None:
    if frames < 1 or (kind == "image" and frames > 1):
        raise UserError(f"frames {frames}: an image is one frame, and a video at least one")
    if frames <= given:
        raise UserError(f"{given} of {frames} frames are given; ask for more frames than that")


def _require_seeds(seeds: Sequence[int]) -> None:
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise UserError(f"seed {seed} must be from 0 to {2**32 - 1}")


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


def _given(first: Sequence[Vision] | None) -> int:
    """Returns how many frames of each picture are given."""
    counts = {len(vision.codes) for vision in first or ()}
    if len(counts) > 1:
        raise UserError("the pictures to go on from differ in their number of frames; draw apart")
    return max(counts, default=0)


def _in_use(drawings: VisionSampling, frames: int, given: int) -> VisionSampling:
    """Returns how the frames that are drawn are: guidance of no others is to cost rows."""
    image = drawings.video if given else drawings.image
    return VisionSampling(image=image, video=image if frames == 1 else drawings.video)


def _prompt(model: LoadedModel, prompt: str, kind: captions.VisionKind) -> list[int]:
    """Returns the ids of a conversation in which a picture is begun."""
    if not prompt.strip():
        raise UserError("the prompt is empty; say what is to be seen")
    said = [captions.request(prompt, kind)]
    ids = render_chat(said, model.tokenizer, template=model.template, marks=model.marks)
    return [*ids, *model.marks.opening]


def _start(model: LoadedModel) -> list[int]:
    """Returns what stands before a picture that nobody asked for."""
    bos = model.tokenizer.bos_id
    return [*([] if bos is None else [bos]), *model.marks.opening]


def _begun(model: LoadedModel, vision: Vision) -> list[int]:
    """Returns the ids of frames that more frames follow."""
    model.require_frames(vision)
    ids = model.marks.frames(vision.codes)
    ids[-1] = model.llama.config.tokens.end_of_frame
    return ids.tolist()


def _sampler(drawing: FrameSampling) -> Sampler:
    return sampler(drawing.writing())


def draw_whole(
    model: LoadedModel,
    prompts: Sequence[str],
    *,
    kind: captions.VisionKind,
    frames: int = 1,
    first: Vision | None = None,
    drawings: VisionSampling = VisionSampling(),
    seed: int = 0,
) -> list[Vision]:
    """Draws an image or a video for each prompt, as `draw` does, and returns them whole."""
    if first is not None:
        model.require_frames(first)
    begun = None if first is None else [first] * len(prompts)
    finished = FrameCollector(model, kind, len(prompts), begun)
    seeds = range(seed, seed + len(prompts))
    for row, frame in draw(
        model, prompts, kind=kind, frames=frames, first=begun, drawings=drawings, seeds=seeds
    ):
        finished.add(row, frame)
    return finished.visions()


class FrameCollector:
    """Frames that are done, each decoded once."""

    def __init__(
        self,
        model: LoadedModel,
        kind: captions.VisionKind,
        count: int,
        first: Sequence[Vision] | None = None,
    ):
        """Starts with what the frames go on from."""
        self._model, self._kind = model, kind
        self._codes: list[list[np.ndarray]] = [[] for _ in range(count)]
        self._pixels: list[list[np.ndarray]] = [[] for _ in range(count)]
        for row, vision in enumerate(first or ()):
            self._codes[row] += list(vision.codes)
            seen = vision.pixels
            self._pixels[row] += list(model.vision.decode(vision.codes) if seen is None else seen)

    def add(self, row: int, frame: Frame) -> UInt8[np.ndarray, "R R 3"]:
        """Takes one more frame, and returns what it shows."""
        (pixels,) = self._model.vision.decode(frame.codes[None])
        self._codes[row].append(frame.codes)
        self._pixels[row].append(pixels)
        return pixels

    def visions(self) -> list[Vision]:
        """Returns the images or videos."""
        is_video = self._kind == "video"
        return [
            Vision(codes=np.stack(codes), pixels=np.stack(pixels), is_video=is_video)
            for codes, pixels in zip(self._codes, self._pixels, strict=True)
        ]
