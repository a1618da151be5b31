"""Parts of a suite that show images or ask for them: of models that read and write both."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from lwm.errors import UserError
from lwm.eval.adherence.config import AdherenceConfig
from lwm.eval.adherence.evaluation import AdherenceEvaluation
from lwm.eval.adherence.run import write as write_adherence
from lwm.eval.qa.config import QAConfig
from lwm.eval.qa.evaluation import QAEvaluation
from lwm.eval.qa.run import write as write_answers
from lwm.eval.qa.world import WorldQuestions
from lwm.eval.results import Results
from lwm.eval.subject import Subject
from lwm.eval.suite.config import OF_IMAGES, PartName, SuiteConfig
from lwm.eval.suite.parts import Asked, AskedPart, Part
from lwm.eval.visual_needle.config import Task, VisualNeedleConfig
from lwm.eval.visual_needle.evaluation import VisualNeedleEvaluation, row_key
from lwm.eval.visual_needle.prompts import frames_within, require_images
from lwm.eval.visual_needle.report import VisualNeedleReport
from lwm.eval.visual_needle.run import write as write_needles
from lwm.world.world import WorldConfig

Found = tuple[Mapping[str, Asked], list[str]]
"""Evaluations by the names of their folders, and lines that say what is left out."""


def parts_of_images(config: SuiteConfig, subject: Subject) -> tuple[list[Part], list[str]]:
    """Returns the parts that show images, and lines that say what is left out.

    A model that reads no images is asked none of them.
    """
    names = [name for name in dict.fromkeys(config.parts) if name in OF_IMAGES]
    if not names:
        return [], []
    try:
        _ = require_images(subject).vision
    except UserError as error:
        return [], [f"{', '.join(names)}: {error}"]
    parts, left_out = [], list[str]()
    for name in names:
        try:
            asked, notes = _MAKERS[name](config, subject)
        except UserError as error:
            asked, notes = {}, [f"{name}: {error}"]
        left_out += notes
        if asked:
            parts.append(AskedPart(kind=name, asked=asked))
    return parts, left_out


def _visual(config: SuiteConfig, subject: Subject) -> Found:
    """Returns visual needles to be named, and if the model generates images, to be generated."""
    asked, notes = {}, list[str]()
    tasks: tuple[Task, ...] = ("ask", "draw")
    for task in tasks:
        own = VisualNeedleConfig(
            frames=tuple(sorted(set(config.frames))),
            depths=config.depths,
            rounds=config.count("visual"),
            task=task,
            seed=config.seed,
        )
        fit = frames_within(own, subject)
        above = sorted(set(own.frames) - set(fit))
        notes += [
            f"{own.folder} at {frames:,} frames: above the model's context of {subject.context:,}"
            for frames in above
        ]
        if not fit:
            continue
        try:
            asked[own.folder] = _needles(dataclasses.replace(own, frames=fit), subject)
        except UserError as error:
            notes.append(f"{own.folder}: {error}")
    return asked, notes


def _needles(config: VisualNeedleConfig, subject: Subject) -> Asked:
    evaluation = VisualNeedleEvaluation(config, subject)

    def written(results: Results, folder: Path) -> None:
        rows = sorted(results.rows, key=row_key)
        write_needles(VisualNeedleReport(header=results.header, rows=rows), folder)

    return Asked(evaluation=evaluation, header=evaluation.header(), write=written)


def _world(config: SuiteConfig, subject: Subject) -> Found:
    """Returns questions about clips of the world, and the same without the clips."""
    questions = WorldQuestions(WorldConfig(seed=config.seed), clips=config.count("world"))
    asked = {}
    for name, blind in (("world", False), ("world-blind", True)):
        evaluation = QAEvaluation(questions, QAConfig(blind=blind), subject)

        def written(results: Results, folder: Path) -> None:
            write_answers(results, folder)

        asked[name] = Asked(evaluation=evaluation, header=evaluation.header(), write=written)
    return asked, []


def _adherence(config: SuiteConfig, subject: Subject) -> Found:
    """Returns captions of the world that are asked for as images and videos."""
    own = AdherenceConfig(samples=config.count("adherence"), seed=config.seed)
    evaluation = AdherenceEvaluation(own, subject)

    def written(results: Results, folder: Path) -> None:
        write_adherence(evaluation, results, folder)

    return {
        "adherence": Asked(evaluation=evaluation, header=evaluation.header(), write=written)
    }, []


_MAKERS: dict[PartName, Callable[[SuiteConfig, Subject], Found]] = {
    "visual": _visual,
    "world": _world,
    "adherence": _adherence,
}
