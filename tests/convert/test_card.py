"""Model cards say what is known, whatever it is called; those that somebody changed are kept."""

import dataclasses
import json
import re
import shutil
from typing import Any

from huggingface_hub import metadata_load

from lwm.convert.card import CardFacts, LanguageFacts, Measured, card, is_written, sections_of
from lwm.convert.card_facts import facts_of, lineage_of, run_card
from lwm.convert.open import open_model_files
from lwm.files import ASSETS
from lwm.formats.run_facts import (
    Licence,
    Lineage,
    Root,
    Stage,
    read_lineage,
    read_run_facts,
    write_lineage,
)
from lwm.hub import catalog
from lwm.recipes import debug
from lwm.train.run_json import write_run
from lwm.vqgan.config import VQGANConfig

replace = dataclasses.replace
HOSTILE = (
    "a\n---\nlicense: mit\n| b | c |\r\n# d <!-- `e` [f](g) \u2028&amp; \ud800: 'yes' \"no\" \\ {{"
)


def language(tiny):
    tokens = open_model_files("tiny-vision").config.tokens
    return LanguageFacts(
        config=tiny(tokens=tokens),
        special={"beginning of text": (), "end of text": (1, 2)},
        markers=((5, 6), (7,)),
        parameters=12_345,
    )


def head_of(text, folder):
    (folder / "README.md").write_text(text)
    return metadata_load(folder / "README.md")


def tables(text):
    """The cells of each line that is part of a table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]


def run_of(folder, *, steps=3, logged=3, version=3):
    """The folder of a run as training leaves it, without a model."""
    recipe = debug()
    write_run(replace(recipe, training=replace(recipe.training, steps=steps)), folder / "run.json")
    values: dict[str, Any] = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(values | {"version": version}))
    lines: list[dict[str, Any]] = [
        {"step": step, "loss": 1.0, "tokens": 100} for step in range(1, logged + 1)
    ]
    scores = {"tokens": 50, "text_loss": 2.5, "text_accuracy": 0.25}
    lines.insert(2, {"step": 2, "held_out": {"a | b": scores}})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = {"data.sets.0/a.txt": "10 bytes, sha256 ab", "data.sets.0/b.txt": "5 bytes, sha256 cd"}
    (folder / "inputs.json").write_text(json.dumps({"version": 1, "files": files}))
    return folder


def facts_at(run, step=None):
    facts = read_run_facts(run, step)
    assert facts is not None
    return facts


def root_of(source, known=None):
    root = lineage_of(source, known).root
    assert root is not None
    return root


def test_a_card_of_a_fine_tuned_model_passes_the_licence_on(tiny, tmp_path):
    root = Root(
        name="LWM-Chat-1M",
        repo="LargeWorldModel/LWM-Chat-1M-Jax",
        licence=Licence(name="Llama 2 Community License", identifier="llama2"),
        languages=("en",),
    )
    stages = (
        Stage(name="short", steps=1000, tokens=10**6, length=2048, theta=1e4),
        Stage(name="long", steps=500, tokens=None, length=8192, theta=5e6),
    )
    facts = CardFacts(
        name="long",
        dtype="bfloat16",
        lineage=Lineage(root=root, stages=stages),
        run=facts_at(run_of(tmp_path)),
        language=language(tiny),
        measured=[Measured(what="one needle", result="45.0%; n = 40", how="lwm eval needle long")],
    )
    text = card(facts)
    assert head_of(text, tmp_path) == {
        "license": "llama2",
        "base_model": "LargeWorldModel/LWM-Chat-1M-Jax",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "any-to-any",
        "tags": ["lwm", "text-to-image", "text-to-video", "video-text-to-text"],
    }
    for line in (
        "| short | 1,000 | 1,000,000 | 2,048 | 10000 |",
        "| long | 500 | unknown | 8,192 | 5e+06 |",
        "| tokens seen | 300 tokens, padding not counted |",
        "| codes of the VQGAN | 1,024 to 2,047 |",
        "| end of frame | 2,048 |",
        "| end of vision | 2,049 |",
        "| end of text | 1, 2 |",
        "| parameters | 12,345 |",
        "| one needle | 45.0%; n = 40 | lwm eval needle long |",
        "They derive from LWM-Chat-1M, under Llama 2 Community License; training and conversion do "
        "not change that.",
    ):
        assert line in text.splitlines(), line
    assert "beginning of text" not in text
    assert {len(row) for row in tables(text)} == {2, 3, 5, 6}


def test_nothing_in_a_name_breaks_head_or_tables(tiny, tmp_path):
    run = facts_at(run_of(tmp_path))
    hostile = replace(run.sets[0], name=HOSTILE, files=(HOSTILE, "hf:some/set"), format=HOSTILE)
    facts = CardFacts(
        name=HOSTILE,
        dtype="float32",
        lineage=Lineage(
            root=Root(
                name=HOSTILE,
                licence=Licence(name=HOSTILE, link=HOSTILE),
                base=(HOSTILE, "org/name"),
                languages=("no",),
            ),
        ),
        converted=HOSTILE,
        run=replace(run, name=HOSTILE, sets=(hostile,)),
        language=language(tiny),
        licence_files=[HOSTILE],
        measured=[Measured(what=HOSTILE, result=HOSTILE, how=HOSTILE)],
    )
    text = card(facts)
    head = head_of(text, tmp_path)
    assert head is not None
    assert (head["license"], head["language"]) == ("other", ["no"])
    assert head["datasets"] == ["some/set"]
    assert head["base_model"][1] == "org/name"
    assert head["license_link"].startswith("a\\n---\\nlicense")
    assert text.splitlines().count("---") == 2
    titles = [line for line in text.splitlines() if line.startswith("#")]
    assert titles[1:] == [
        f"## {title}"
        for title in (
            "Architecture",
            "Token space",
            "Origin",
            "Use",
            "Training",
            "Data",
            "Measured",
            "Licence",
        )
    ]
    assert {len(row) for row in tables(text)} == {2, 3, 6}
    body = text.partition("\n---\n")[2]
    assert body.count("<!--") - body.count("\\<!--") == 1
    assert is_written(text)


def test_a_card_that_was_changed_is_known(tiny, tmp_path):
    text = card(CardFacts(name="a", dtype="float32", lineage=Lineage(), language=language(tiny)))
    assert is_written(text)
    file = tmp_path / "README.md"
    file.write_bytes(text.replace("\n", "\r\n").encode())  # as git may write it
    assert is_written(file.read_text())
    for changed in (
        text.replace("# a", "# b"),
        f"{text}More.\n",
        f"Before.\n{text}",
        "\n".join(text.splitlines()[:-1]),
        "# Mine\n",
        "",
    ):
        assert not is_written(changed)


def test_facts_of_a_run_up_to_a_step(tmp_path):
    run = run_of(tmp_path / "a", steps=4, logged=3)
    facts = facts_at(run, 3)
    assert (facts.name, facts.step, facts.steps, facts.seen) == ("a", 3, 4, 300)
    assert (facts.scored_at, facts.scores["a | b"]["text_loss"]) == (2, 2.5)
    assert facts_at(run, 1).scores == {}
    assert facts_at(run).seen is None, "the log lacks the last step"
    (chapters,) = facts.sets
    assert (chapters.num_files, chapters.num_bytes, chapters.endings) == (2, 15, (".txt",))
    assert chapters.licence == "public domain"
    assert replace(chapters, files=(*chapters.files, "own.txt")).licence is None
    assert read_run_facts(run_of(tmp_path / "b", version=2)) is None
    (run / "run.json").write_text("{}")
    assert read_run_facts(run) is None
    assert run_card(run, tmp_path, dtype="float32") is None


def test_the_lineage_of_a_run_is_recorded(tmp_path):
    root = Root(name="a", licence=Licence(name="MIT", identifier="mit"), base=("b/c",))
    lineage = Lineage(root=root, stages=(Stage(name="s", steps=2, tokens=3),))
    write_lineage(lineage, tmp_path)
    assert read_lineage(tmp_path) == lineage
    write_lineage(Lineage(), tmp_path)
    assert read_lineage(tmp_path) == Lineage()
    for damaged in ("", "[]", '{"version": 1, "root": {"x": 1}, "stages": []}'):
        (tmp_path / "lineage.json").write_text(damaged)
        assert read_lineage(tmp_path) is None


def test_licence_and_base_are_read_from_the_card_of_a_model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    unknown = root_of(folder)
    assert (unknown.name, unknown.licence, unknown.repo) == ("model", None, None)
    head = "license: other\nlicense_name: My-L\nlicense_link: x.y\nbase_model: [o/m, /home/me]\n"
    (folder / "README.md").write_text(f"---\n{head}language: en\n---\n# Hers\n")
    root = root_of(folder)
    assert root.licence == Licence(name="My-L", identifier="other", link="x.y")
    assert (root.base, root.languages) == (("o/m",), ("en",))
    (folder / "README.md").write_text("---\nlicense: [unclosed\n---\n")
    assert root_of(folder) == unknown
    cached = tmp_path / "models--org--name" / "snapshots" / "abc"
    cached.mkdir(parents=True)
    assert root_of(cached).repo == "org/name"
    known = root_of(cached, catalog.known("LWM-Text-1M"))
    assert known.repo == "LargeWorldModel/LWM-Text-1M-Jax"
    assert known.licence == Licence(name="Llama 2 Community License", identifier="llama2")


def test_sections_that_stay_true_go_with_the_weights(tiny, tmp_path):
    source = tmp_path / "model"
    shutil.copytree(ASSETS / "tiny-vision", source)
    facts = CardFacts(
        name="a",
        dtype="float32",
        lineage=Lineage(stages=(Stage(name="a", steps=3),)),
        run=facts_at(run_of(tmp_path / "a")),
        language=language(tiny),
    )
    (source / "README.md").write_text(card(facts))
    opened = open_model_files(source)
    found = sections_of(card(facts_of(opened, "bfloat16")))
    before = sections_of(card(facts))
    assert found["Training"] == before["Training"]
    assert found["Data"] == before["Data"]
    assert found["Licence"] == before["Licence"]
    assert found["Origin"].startswith(before["Origin"] + "\nConverted again by `lwm convert`")
    (source / "README.md").write_text(card(facts) + "\nMine.\n")
    assert "Training" not in sections_of(card(facts_of(opened, "bfloat16")))


def test_the_card_of_the_originals_format_says_how_its_programs_open_it(tmp_path):
    facts = facts_of(open_model_files("tiny-vision"), "float32", target="lwm-original")
    text = card(facts)
    head = head_of(text, tmp_path)
    assert head is not None
    assert head["library_name"] == "lwm"
    assert "--load_checkpoint=params::FOLDER/params" in text
    assert "--vqgan_checkpoint=FOLDER/vqgan" in text
    assert "transformers" not in text


def test_a_tokenizer_without_a_decoder_is_not_said_to_write(tiny):
    vqgan = VQGANConfig(
        resolution=16,
        hidden=32,
        multipliers=(1, 1),
        res_blocks=1,
        z_channels=4,
        codes=8,
        code_dim=4,
        decoder=False,
    )
    facts = CardFacts(name="a", dtype="float32", lineage=Lineage(), vqgan=vqgan)
    assert "encodes frames of 16 × 16 pixels as 64 codes." in card(facts)
    assert "generate image" not in card(replace(facts, language=language(tiny)))
