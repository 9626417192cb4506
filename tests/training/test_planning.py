"""Plans without weights, lengths in epochs, and what a mixture cannot use."""

from pathlib import Path

import pytest

from sightloom.config import load
from sightloom.data.shards.manifest import read_manifest
from sightloom.data.shards.reader import read_table
from sightloom.errors import UserMistake
from sightloom.model.chat import Encoder
from sightloom.model.load import processor_of
from sightloom.model.presets import published_preset
from sightloom.model.scratch import build_folder
from sightloom.progress import NullProgress
from sightloom.tracking import NullTracker
from sightloom.training.corpus import Corpus
from sightloom.training.curriculum import Curriculum, Stage
from sightloom.training.epochs import with_steps
from sightloom.training.index import corpus_texts, index_for
from sightloom.training.order import Order
from sightloom.training.packing import Limits, StepPlan
from sightloom.training.planning import plan
from sightloom.training.stages import train

CURRICULA = Path(__file__).parents[2] / "pipelines" / "curricula"
NANO, PUBLISHED = CURRICULA / "nano.yaml", CURRICULA / "openvlthinker-v2.yaml"


@pytest.fixture(scope="module")
def corpus(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    out = tmp_path_factory.mktemp("start")
    folder = build_folder("nano", corpus_texts(read_manifest(shards), 1, 300), out / "model", seed=1)
    index = index_for(read_manifest(shards), folder, Encoder(processor_of(folder)), out, NullProgress())
    return Corpus(((shards, str(index)),), 0.1)


def stage(number: int, *overrides: str) -> Stage:
    sets = [f"stages.{number}.{override}" for override in overrides]
    return load(Curriculum, NANO, sets).stages[number]


def test_the_published_curriculum_is_planned_without_weights(shards: str, tmp_path: Path) -> None:
    curriculum = load(Curriculum, PUBLISHED, [f"data.manifest={shards}", "data.heldout=0.0"])
    assert curriculum.model.pixels == (3136, 1_048_576) and curriculum.stages[0].registers
    (planned,) = plan(curriculum, str(tmp_path / "out"))
    assert (planned.name, planned.status) == ("reason-rl", "to do")
    checkable = sum(kind is not None for kind in read_table(read_manifest(shards)).column("answer_kind").to_pylist())
    assert planned.steps == -(-checkable // 64) and planned.max_tokens == planned.steps * 64 * 8 * 4096
    # 8.77e9 parameters: 6 of training at 40 %, 2 of sampling at 5 % of 989e12, a token
    hours = 8.77e9 * planned.max_tokens * (6 / 0.40 + 2 / 0.05) / 989e12 / 3600
    assert planned.gpu_hours == pytest.approx(hours, rel=0.1)
    assert planned.usd == pytest.approx(3 * hours, rel=0.1)
    assert not (tmp_path / "out").exists()
    many = load(Curriculum, PUBLISHED, [f"data.manifest={shards}", "stages.0.epochs=20"])
    assert (plan(many, str(tmp_path / "out"))[0].steps or 0) > 10 * planned.steps


def test_a_length_that_is_known_only_with_the_packs_is_not_guessed(shards: str, tmp_path: Path) -> None:
    sets = [f"data.manifest={shards}", "stages.0.steps=null", "stages.0.epochs=1.5"]
    first, second, *_ = plan(load(Curriculum, NANO, sets), str(tmp_path / "out"))
    assert first.steps is None and first.max_tokens is None
    assert second.steps == 450 and second.gpu_hours is None and second.usd is None  # without GPUs there is no cost


def test_published_models_are_known_by_their_hub_ids() -> None:
    assert published_preset("Qwen/Qwen3-VL-8B-Instruct") == "8b"
    assert published_preset("Qwen/Qwen3-VL-32B-Thinking@main") == "32b"
    assert published_preset("Qwen/Qwen3-VL-235B-A22B-Instruct") is None


@pytest.mark.parametrize("epochs", [1, 2.5])
def test_an_epoch_is_as_many_steps_as_its_samples_fill(corpus: Corpus, epochs: float) -> None:
    captions = ("steps=null", f"epochs={epochs}", "batch.max_tokens=400", "batch.window=64")
    resolved = with_steps(stage(0, *captions), corpus, seed=3)
    sources = corpus.sources(resolved)
    order = Order(sources, 3, resolved.batch.window)
    limits = Limits(resolved.batch.max_tokens, resolved.batch.max_patches)
    steps = StepPlan(order, corpus.lengths(resolved), corpus.patches, limits, resolved.batch.packs, 3)
    taken = sum(len(rows) for _ in range(resolved.num_steps) for rows in steps.next_step())
    assert resolved.epochs is None
    held = epochs * sum(len(source.rows) for source in sources)
    assert taken == pytest.approx(held, abs=30)  # the last steps are rounded to whole packs


def test_an_epoch_of_prompts_is_counted_in_prompts(corpus: Corpus) -> None:
    resolved = with_steps(stage(3, "steps=null", "epochs=1", "objective.rollout.prompts=4"), corpus, seed=3)
    (drawn,) = corpus.drawn(resolved)
    assert resolved.num_steps == -(-len(drawn.rows) // 4)


def test_what_a_mixture_cannot_use_is_counted_by_reason(corpus: Corpus) -> None:
    every = "mix={all: {weight: 1.0}}"
    (whole,) = corpus.drawn(stage(1, every))
    assert whole.dropped == {"nothing to learn": 40 - _held(corpus, "preference")}  # comparisons are not imitated
    lengths = corpus.direct[whole.rows]
    bound = int(sorted(lengths)[len(lengths) // 2])
    (short,) = corpus.drawn(stage(1, every, f"batch.max_tokens={bound}"))
    assert short.dropped["too many tokens"] == int((lengths > bound).sum()) > 0
    assert len(short.rows) + sum(short.dropped.values()) == len(whole.rows) + sum(whole.dropped.values())
    with pytest.raises(UserMistake, match=r"mix\.all: nothing to train on is left \(.* too many patches\)"):
        corpus.drawn(stage(1, every, "batch.max_patches=1"))


def _held(corpus: Corpus, kind: str) -> int:
    return len(corpus.select(f'kind == "{kind}"', held_out=True))


def test_a_conversation_without_an_answer_of_the_model_is_left_out_and_counted(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    (before,) = corpus.drawn(stage(1, "mix={all: {weight: 1.0}}"))
    real = corpus.column

    def silent(name: str, rows: object) -> list[object]:
        values = real(name, rows)  # type: ignore[arg-type]
        return [0 if value is not None else None for value in values] if name == "turns" else values

    monkeypatch.setattr(corpus, "column", silent)
    (after,) = corpus.drawn(stage(1, "mix={all: {weight: 1.0}}"))
    conversations = len(corpus.select('kind == "conversation"'))
    assert after.dropped["nothing to learn"] == before.dropped["nothing to learn"] + conversations


def test_only_a_stage_that_is_there_can_be_run_alone(shards: str, tmp_path: Path) -> None:
    curriculum = load(Curriculum, NANO, [f"data.manifest={shards}", "ray.workers=0"])
    with pytest.raises(UserMistake, match="there is no stage 'instruckt'; did you mean 'instruct'"):
        train(curriculum, str(tmp_path), NullProgress(), NullTracker(), only="instruckt")
    with pytest.raises(UserMistake, match="'instruct' builds on one that is not done"):
        train(curriculum, str(tmp_path), NullProgress(), NullTracker(), only="instruct")
