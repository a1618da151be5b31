"""The public methods of a model: see, chat, draw and generate."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Unpack

from lwm import renamed
from lwm.generate.answer import Answer
from lwm.generate.batch import Completion, Result, TextRequest, answers, complete, encode
from lwm.generate.chat import Conversation
from lwm.generate.loaded import LoadedModel
from lwm.generate.vision import DrawRequest, generate_visions
from lwm.media.frames import Frames, read_frames
from lwm.progress import Progress
from lwm.sampling_params import SamplingOptions, SamplingParams, VisionSampling
from lwm.tokenizer.message import Message, Part, Vision


class LanguageModel(LoadedModel):
    """A model ready to generate: `lwm.load` returns one."""

    def see(
        self,
        file: str | Path | bytes,
        *,
        max_frames: int | None = 8,
        fps: float | None = None,
        background: str = "white",
        check: Callable[[Frames], None] = lambda frames: None,
    ) -> Vision:
        """Reads an image or a video, and encodes it for a question about it.

        Args:
            file: A path, or the bytes of a file; the format is found from its content.
            max_frames: Frames of a video at most, evenly spaced; None is all.
            fps: Takes the frames shown at each 1/fps seconds, of which `max_frames` remain.
            background: A colour for transparent pixels.
            check: Called with the frames before they are encoded, which takes longer; may raise.

        Raises:
            UserError: The file cannot be read, or the model has no vision ids or no VQGAN.
        """
        frames = read_frames(
            file,
            resolution=self.vision.resolution,
            max_frames=max_frames,
            fps=fps,
            background=background,
        )
        check(frames)
        name = "" if isinstance(file, bytes) else Path(file).name
        return Vision(
            codes=self.encode_frames(frames.pixels),
            is_video=frames.is_video,
            pixels=frames.pixels,
            times=frames.times,
            name=name,
        )

    def chat(
        self,
        question: str | Sequence[Part],
        *,
        document: str | None = None,
        **params: Unpack[SamplingOptions],
    ) -> str:
        """Answers one question in text; `lwm.Conversation` streams answers and keeps turns.

        Args:
            question: A text, or texts and results of `see` in any order.
            document: A text that is put before the question.
            **params: Fields of `SamplingParams`, such as max_tokens, temperature, seed.

        Raises:
            UserError: The prompt and the answer do not fit into the context.
        """
        conversation = Conversation(self, document=document)
        pieces = conversation.ask(question, params=SamplingParams(**params))
        return "".join(piece for piece in pieces if isinstance(piece, str))

    @renamed.keywords(drawings="sampling")
    def draw(
        self,
        prompt: str,
        *,
        frames: int = 1,
        n: int = 1,
        seed: int = 0,
        first: Vision | None = None,
        sampling: VisionSampling = VisionSampling(),
    ) -> list[Vision]:
        """Generates images or videos from a text.

        Args:
            prompt: Describes the image or video.
            frames: 1 for an image, more for a video.
            n: Images or videos, generated together.
            seed: Seed of the first; each next one has the next seed.
            first: An image or a video that each continues; its frames count.
            sampling: Guidance and sampling; values that are None are the model's own.

        Raises:
            UserError: The model cannot generate images, or they do not fit into its context or
                the devices' memory.
        """
        request = DrawRequest(
            prompts=(prompt,) * n,
            kind="video" if frames > 1 else "image",
            frames=frames,
            first=() if first is None else (first,) * n,
            sampling=sampling,
            seed=seed,
        )
        return generate_visions(self, request)

    def generate(self, prompt: str, **params: Unpack[SamplingOptions]) -> str:
        """Continues a text.

        Args:
            prompt: The text; the model's beginning-of-text token is put before it, if it has one.
            **params: Fields of `SamplingParams`, such as max_tokens, temperature, seed.

        Raises:
            UserError: The prompt is empty, or it and the continuation do not fit.
        """
        return "".join(piece for piece in self.stream(prompt, **params) if isinstance(piece, str))

    def stream(self, prompt: str | Sequence[Message], **params: Unpack[SamplingOptions]) -> Answer:
        """Continues a text or answers a chat in pieces, as they are generated.

        The result has `finish_reason`, `usage`, `ids` and `logprobs`, which are complete after
        the last piece; closing or dropping it ends the answer. Threads may share a model: their
        answers are generated together.

        Args:
            prompt: A text to continue, or the turns of a chat, of which the last is a question.
            **params: Fields of `SamplingParams`, such as max_tokens, temperature, seed.

        Raises:
            UserError: The prompt is empty, or it and the continuation do not fit.
        """
        is_text = isinstance(prompt, str)
        return Answer(
            self,
            encode(self, prompt),
            SamplingParams(**params),
            continues=is_text,
            is_turn=not is_text,
        )

    def batch(
        self,
        requests: Sequence[TextRequest],
        *,
        progress: Progress = lambda done, total: None,
    ) -> Iterator[Result]:
        """Answers requests together; yields each answer once it is ready, in any order.

        An answer does not depend on the other requests. One that does not fit is an error of its
        own, and the others go on.

        Args:
            requests: Texts to continue and chats to answer.
            progress: Called with the tokens of prompts read and of answers written, and the most
                that these can still become; may raise.
        """
        return answers(self, requests, progress=progress)

    def generate_batch(
        self,
        prompts: Sequence[str],
        *,
        progress: Progress = lambda done, total: None,
        **params: Unpack[SamplingOptions],
    ) -> list[Completion]:
        """Continues texts of any lengths in one batch; none depends on the others.

        Args:
            prompts: The texts.
            progress: See `batch`.
            **params: Fields of `SamplingParams`, such as max_tokens, temperature, seed.

        Raises:
            UserError: A prompt is empty, or it and its continuation do not fit into the context or
                the devices' memory.
        """
        return complete(self, prompts, SamplingParams(**params), progress=progress)
