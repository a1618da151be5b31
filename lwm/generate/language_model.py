"""The public methods of a model: see, chat, draw and generate."""

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack, overload

import numpy as np
from jaxtyping import Float, UInt8

from lwm import renamed
from lwm.errors import UserError
from lwm.generate.answer import Answer
from lwm.generate.batch import Completion, Result, TextRequest, answers, complete, encode
from lwm.generate.chat import with_document
from lwm.generate.loaded import LoadedModel
from lwm.generate.logits import logits_of
from lwm.generate.questions import Question, QuestionReader, texts_of
from lwm.generate.vision import DrawRequest, generate_visions
from lwm.media.frames import FrameStream, open_frames
from lwm.media.limits import Limits
from lwm.progress import Progress
from lwm.sampling_params import SamplingOptions, SamplingParams, VisionSampling
from lwm.tokenizer.message import Message, Vision, Visions

KEPT_FRAMES = 64
"""Frames of a file whose pixels are kept beside their codes, at most."""


class LanguageModel(LoadedModel):
    """A model ready to generate: `lwm.load` returns one."""

    def see(
        self,
        file: str | Path | bytes | Any,
        *,
        max_frames: int | None = 8,
        fps: float | None = None,
        background: str = "white",
        limits: Limits | None = None,
        name: str | None = None,
        check: Callable[[FrameStream], None] = lambda frames: None,
        progress: Progress = lambda done, total: None,
    ) -> Vision:
        """Reads an image or a video, and encodes it for a question about it.

        A film of any length takes little memory: its frames are encoded as they are read, and of
        more than `KEPT_FRAMES` frames only the codes are kept.

        Args:
            file: A path, or the bytes of a file, whose format is found from its content; an image
                of Pillow; an array of uint8, `H W 3` of an image or `T H W 3` of a video; or a list
                of images, the frames of a video.
            max_frames: Frames of a video at most, evenly spaced; None is all.
            fps: Takes the frames shown at each 1/fps seconds, of which `max_frames` remain.
            background: A colour for transparent pixels.
            limits: Limits on the file; the defaults suit any normal file.
            name: The name of the file in messages; by default that of its path.
            check: Called with the frames to come before any is decoded; may raise.
            progress: Called with the number of frames encoded; may raise.

        Raises:
            UserError: The file cannot be read, the frames alone exceed the context, or the model
                has no vision ids or no VQGAN.
        """
        stream = open_frames(
            file,
            resolution=self.vision.resolution,
            max_frames=max_frames,
            fps=fps,
            background=background,
            limits=limits,
            name=name,
        )
        with stream:
            check(stream)
            self._require_context(stream)
            own = Path(file).name if isinstance(file, str | Path) else ""
            return self._encoded(stream, own if name is None else name, progress)

    def _require_context(self, stream: FrameStream) -> None:
        """Refuses frames that exceed the context by themselves."""
        count, frame = stream.num_selected, self.vision.tokens_per_frame + 1
        size = self.marks.size(count, self.vision.tokens_per_frame)
        if size <= self.context:
            return
        fit = max(0, count - -(-(size - self.context) // frame))
        raise UserError(
            f"{stream.name}: {count:,} frames, {size:,} tokens; that is more than the context of "
            f"{self.context:,} that {self.name} has: {fit:,} frames fit; give max_frames or a "
            "lower fps"
        )

    def _encoded(self, stream: FrameStream, name: str, progress: Progress) -> Vision:
        """Encodes frames as they are read."""
        total = stream.num_selected
        times: list[float] = []
        pixels: list[UInt8[np.ndarray, "R R 3"]] = []

        def frames() -> Iterator[UInt8[np.ndarray, "R R 3"]]:
            # The rest of an animation would only be decoded for its duration.
            for frame in itertools.islice(stream, total):
                times.append(frame.time)
                if total <= KEPT_FRAMES:
                    pixels.append(frame.pixels)
                yield frame.pixels

        codes = []
        progress(0, total)
        for part in self.encode_stream(frames(), total):
            codes.append(part)
            progress(len(times), total)
        return Vision(
            codes=np.concatenate(codes),
            is_video=stream.is_video,
            pixels=np.stack(pixels) if pixels else None,
            times=None if np.isnan(times).any() else np.array(times),
            name=name,
        )

    def chat(
        self,
        question: Question,
        *,
        document: str | None = None,
        **params: Unpack[SamplingOptions],
    ) -> str:
        """Answers a question in text; `lwm.Conversation` streams answers and keeps turns.

        Args:
            question: A text; texts and images in any order, where an image is a result of `see` or
                anything that `see` takes but a path as plain text; or the turns of a chat up to the
                question, as `lwm.Message` or in OpenAI's JSON.
            document: A text that is put before the first question.
            **params: Fields of `SamplingParams`, such as max_tokens, temperature, seed.

        Raises:
            UserError: The question is none of these, an image cannot be read, or the prompt and the
                answer do not fit into the context.
        """
        return self._chat(question, document, params).read()

    async def achat(
        self,
        question: Question,
        *,
        document: str | None = None,
        **params: Unpack[SamplingOptions],
    ) -> str:
        """Answers as `chat` does, while other tasks go on; several are answered together."""
        answer = await asyncio.to_thread(self._chat, question, document, params)
        return await answer.aread()

    def _chat(self, question: Question, document: str | None, params: SamplingOptions) -> Answer:
        messages = QuestionReader(self.see).messages(question)
        if document is not None:
            first = next((n for n, each in enumerate(messages) if each.role == "user"), 0)
            messages[first] = with_document(messages[first], document)
        return self._answer(messages, params)

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
    ) -> Visions:
        """Generates images or videos from a text; the result is a list that notebooks show.

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
        return Visions(generate_visions(self, request))

    @overload
    def generate(self, prompt: str, **params: Unpack[SamplingOptions]) -> str: ...

    @overload
    def generate(self, prompt: Sequence[str], **params: Unpack[SamplingOptions]) -> list[str]: ...

    def generate(
        self, prompt: str | Sequence[str], **params: Unpack[SamplingOptions]
    ) -> str | list[str]:
        """Continues a text, or several together.

        Args:
            prompt: The text, or a list of texts of any lengths; `generate_batch` also returns their
                tokens. The model's beginning-of-text token is put before each, if it has one.
            **params: Fields of `SamplingParams`, such as max_tokens, temperature, seed.

        Raises:
            UserError: A prompt is no text or empty, or it and the continuation do not fit.
        """
        if isinstance(prompt, str):
            return self.stream(prompt, **params).read()
        return [each.text for each in self.generate_batch(texts_of(prompt), **params)]

    async def agenerate(
        self, prompt: str | Sequence[str], **params: Unpack[SamplingOptions]
    ) -> str | list[str]:
        """Continues texts as `generate` does, while other tasks go on."""
        if isinstance(prompt, str):
            return await self.stream(prompt, **params).aread()
        return await asyncio.to_thread(self.generate, prompt, **params)

    def stream(self, prompt: Question, **params: Unpack[SamplingOptions]) -> Answer:
        """Continues a text or answers a chat in pieces, as they are generated.

        The result has `finish_reason`, `usage`, `ids` and `logprobs`, which are complete after
        the last piece; closing or dropping it ends the answer. It is for `async for`, too. Threads
        may share a model: their answers are generated together.

        Args:
            prompt: A text to continue, or a question to `chat` that is more than a text.
            **params: Fields of `SamplingParams`, such as max_tokens, temperature, seed.

        Raises:
            UserError: The prompt is empty, or it and the continuation do not fit.
        """
        return self._answer(self._prompt(prompt), params)

    def _prompt(self, prompt: Question) -> str | Sequence[Message]:
        return prompt if isinstance(prompt, str) else QuestionReader(self.see).messages(prompt)

    def _answer(self, prompt: str | Sequence[Message], params: SamplingOptions) -> Answer:
        is_text = isinstance(prompt, str)
        return Answer(
            self,
            encode(self, prompt),
            SamplingParams(**params),
            continues=is_text,
            is_turn=not is_text,
        )

    def count_tokens(self, prompt: Question) -> int:
        """Returns the tokens of a prompt, those that the model or its chat template adds included.

        Args:
            prompt: A text to continue, or a question to `chat` that is more than a text.

        Raises:
            UserError: The prompt is empty or malformed.
        """
        return len(encode(self, self._prompt(prompt)))

    def logits(self, texts: str | Sequence[str]) -> list[Float[np.ndarray, "T V"]]:
        """Returns the logits after each token of whole texts, which are read together.

        The tokens of a text are those of `encode_prompt`, and V is the number of ids in use, those
        of vision after those of text. All logits of all texts are in memory at once.

        Raises:
            UserError: A text is empty or exceeds the context, or the model runs in several
                processes.
        """
        return logits_of(self, [self.encode_prompt(text) for text in texts_of(texts)])

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
