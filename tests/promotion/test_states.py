import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightloom.errors import GateNotPassed, UserMistake
from sightloom.promotion.canary import CanaryPlan
from sightloom.promotion.decide import Move, move_back, moves_to_promote, refused, version_to_restore
from sightloom.promotion.events import GENESIS, KINDS, Entry, Event, LedgerBroken
from sightloom.promotion.fold import State, anchor_args, fold, mend
from sightloom.promotion.states import ModelState, why_illegal


def event(kind: str, version: int, prev: str, reason: str = "r", **args: object) -> Event:
    return Event(f"{kind}-{version}-{prev[:6]}", kind, "m", version, args, "ann", "2026-01-01", reason, {}, prev)


def chain(*steps: tuple[str, int, dict[str, object]]) -> list[Entry]:
    """Entries that follow each other as one careful writer would write them."""
    entries: list[Entry] = []
    for kind, version, args in steps:
        head = fold(entries).head
        entries.append(Entry(len(entries) + 1, event(kind, version, head, **args).text()))
    return entries


def promoted(version: int, champion: bool) -> list[tuple[str, int, dict[str, object]]]:
    start: list[tuple[str, int, dict[str, object]]] = [("start", version, {"plan": []})] if champion else []
    passed = [("evaluate", version, {}), ("verdict", version, {"outcome": "passed"})]
    return [*passed, *start, ("promote", version, {})]


def test_the_first_champion_needs_no_trial_and_the_next_one_makes_it_the_previous() -> None:
    state = fold(chain(*promoted(1, False), *promoted(2, True), *promoted(3, True))).model("m")
    assert state.aliases() == {"champion": 3, "previous": 2}
    assert state.stages[1] == "retired"


def test_a_rollback_brings_the_previous_back_and_there_is_none_behind_it() -> None:
    entries = chain(*promoted(1, False), *promoted(2, True), ("rollback", 1, {}))
    state = fold(entries).model("m")
    assert state.aliases() == {"champion": 1}
    assert state.stages[2] == "aborted"
    with pytest.raises(UserMistake, match="no previous"):
        version_to_restore(state, "m")


def test_a_challenger_must_walk_its_plan() -> None:
    plan: dict[str, object] = {"plan": [{"bp": 100}, {"bp": 1000}]}
    steps = [*promoted(1, False), *promoted(2, True)[:2], ("start", 2, plan), ("step", 2, {})]
    state = fold(chain(*steps)).model("m")
    assert (state.challenger, state.trial.step) == (2, 1)
    assert "may not be promoted" in why_illegal(state, event("promote", 2, GENESIS))
    assert why_illegal(state, event("promote", 2, GENESIS, override=True)) == ""
    assert "needs a reason" in why_illegal(state, event("promote", 2, GENESIS, reason="", override=True))
    after = fold(chain(*steps, ("step", 2, {}), ("promote", 2, {}))).model("m")
    assert after.champion == 2


def test_of_two_writers_on_one_head_the_first_wins_and_the_other_stays_on_record_as_lost() -> None:
    entries = chain(*promoted(1, False))
    head = fold(entries).head
    entries.append(Entry(4, event("evaluate", 2, head).text()))
    entries.append(Entry(5, event("evaluate", 3, head).text()))
    state = fold(entries)
    assert [line.outcome for line in state.lines[-2:]] == ["accepted", "lost"]
    assert 3 not in state.model("m").stages


def test_an_edit_a_deletion_and_a_cut_are_found_and_strangers_are_only_listed() -> None:
    entries = chain(*promoted(1, False), *promoted(2, True))
    edited = [*entries]
    edited[2] = Entry(3, (entries[2].text or "").replace("ann", "eve"))
    with pytest.raises(LedgerBroken, match="event 4 follows"):
        fold(edited)
    with pytest.raises(LedgerBroken, match="event 3 is missing"):
        fold([entry for entry in entries if entry.number != 3])
    with pytest.raises(LedgerBroken, match="edited or cut"):
        fold(entries[:-1], witness=fold(entries).head)
    with pytest.raises(LedgerBroken, match="cannot be read"):
        fold([Entry(1, json.dumps({"kind": "promote"}))])
    state = fold([*entries, Entry(len(entries) + 1, None)])
    assert state.lines[-1].outcome == "foreign"
    assert state.head == fold(entries).head


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 4), st.integers(0, 2), st.booleans()), max_size=25))
def test_any_interleaving_of_attempts_folds_to_one_legal_state(
    attempts: list[tuple[str, int, int, bool]],
) -> None:
    entries: list[Entry] = []
    heads = [GENESIS]
    for kind, version, lag, override in attempts:
        args = {"outcome": "passed"} if kind == "verdict" else {"override": True} if override else {}
        attempt = event(kind, version, heads[max(0, len(heads) - 1 - lag)], **args)
        entries.append(Entry(len(entries) + 1, attempt.text()))
        state = fold(entries)
        if state.head != heads[-1]:
            heads.append(state.head)
    state = fold(entries)
    assert [line.outcome for line in state.lines].count("accepted") == len(heads) - 1
    stages = list(state.model("m").stages.values())
    assert all(stages.count(stage) <= 1 for stage in ("champion", "challenger", "previous"))
    promotions = [
        line for line in state.lines if line.outcome == "accepted" and line.event and line.event.kind == "promote"
    ]
    assert not promotions or state.model("m").champion is not None, "there is always a champion once there was one"


def test_moves_stop_at_the_verdict_unless_it_passed_or_is_overridden() -> None:
    first = ModelState()
    kinds = [move.kind for move in moves_to_promote(first, 1, "passed", False)]
    assert kinds == ["evaluate", "verdict", "promote"]
    assert [move.kind for move in moves_to_promote(first, 1, "rejected", False)] == ["evaluate", "verdict"]
    forced = moves_to_promote(first, 1, "rejected", True)
    assert [(move.kind, dict(move.args).get("override")) for move in forced[2:]] == [("start", True), ("promote", True)]
    running = replace(first, stages={1: "champion", 2: "previous"})
    kinds = [move.kind for move in moves_to_promote(running, 3, "passed", False)]
    assert kinds == ["evaluate", "verdict", "start", "promote"]
    for version, words in ((1, "the champion already"), (2, "previous champion")):
        with pytest.raises(UserMistake, match=words):
            moves_to_promote(running, version, "passed", False)
    assert isinstance(refused("m", 3, "rejected", ["x"]), GateNotPassed)


def test_an_override_ends_the_plan_of_a_challenger_and_nothing_else_does() -> None:
    plan: dict[str, object] = {"plan": [{"bp": 100}, {"bp": 1000}]}
    entries = chain(*promoted(1, False), *promoted(2, True)[:2], ("start", 2, plan))
    its = fold(entries).model("m")
    assert moves_to_promote(its, 2, "passed", False, CanaryPlan()) == []
    (move,) = moves_to_promote(its, 2, "passed", True, CanaryPlan())
    assert move == Move("promote", 2, {"override": True})
    assert why_illegal(its, event(move.kind, 2, GENESIS, **move.args)) == ""


def test_what_is_not_champion_yet_can_be_taken_back_by_name_and_the_challenger_without() -> None:
    its = fold(chain(*promoted(1, False), *promoted(2, True)[:2], *promoted(3, True)[:1])).model("m")
    assert move_back(its, "m") == Move("abort", 3)
    assert move_back(its, "m", 2) == Move("retire", 2)
    its = replace(its, stages={**its.stages, 4: "challenger"})
    assert move_back(its, "m") == Move("abort", 4)
    for found in (move_back(its, "m", version) for version in (2, 3, 4)):
        assert why_illegal(its, event(found.kind, found.version, GENESIS)) == ""
    with pytest.raises(UserMistake, match="m:1 is champion"):
        move_back(its, "m", 1)
    with pytest.raises(UserMistake, match="m:9 is new"):
        move_back(its, "m", 9)
    with pytest.raises(UserMistake, match="no version of m is on trial"):
        move_back(ModelState({1: "champion", 2: "retired"}), "m")
    assert move_back(ModelState({1: "champion", 2: "passed"}), "m") == Move("retire", 2)


def test_every_list_of_moves_is_legal() -> None:
    for override in (False, True):
        for outcome in ("passed", "rejected", "inconclusive"):
            entries = chain(*promoted(1, False), *promoted(2, True))
            for move in moves_to_promote(fold(entries).model("m"), 3, outcome, override):
                state: State = fold(entries)
                entries.append(Entry(len(entries) + 1, event(move.kind, move.version, state.head, **move.args).text()))
            assert all(line.outcome == "accepted" for line in fold(entries).lines)


def anchored(entries: list[Entry], seen: int, witness: str = "") -> Entry:
    """An anchor as a careful writer puts it at the end."""
    args = anchor_args(mend(entries), seen, witness)
    written = Event(f"anchor-{len(entries)}", "anchor", "", 0, args, "ann", "2026-01-02", "looked at it", {}, GENESIS)
    return Entry(entries[-1].number + 1, written.text())


def test_a_broken_ledger_goes_on_from_an_anchor_that_holds_the_whole_state() -> None:
    plan: dict[str, object] = {"plan": [{"bp": 100}], "auto": False}
    trial = [*promoted(3, True)[:2], ("start", 3, plan), ("step", 3, {})]
    entries = chain(*promoted(1, False), *promoted(2, True), *trial)
    before, witness = fold(entries), fold(entries).head
    entries[1] = Entry(2, (entries[1].text or "").replace("ann", "eve"))
    with pytest.raises(LedgerBroken):
        fold(entries)
    whole = [*entries, anchored(entries, entries[-1].number, witness)]
    after = fold(whole, witness)
    assert after.model("m").stages == before.model("m").stages
    assert after.model("m").trial == before.model("m").trial
    assert [line.outcome for line in after.lines] == ["superseded"] * len(entries) + ["accepted"]
    whole.append(Entry(len(whole) + 1, event("promote", 3, after.head).text()))
    assert fold(whole).model("m").champion == 3
    late = Entry(len(whole) + 1, event("abort", 3, before.head).text())
    assert fold([*whole, late]).lines[-1].outcome == "lost", "a writer who had seen the ledger before the anchor"


def test_a_missing_number_and_a_cut_end_are_mended_and_of_two_anchors_the_first_holds() -> None:
    entries = chain(*promoted(1, False), *promoted(2, True))
    gap = [entry for entry in entries if entry.number != 2]
    first = anchored(gap, gap[-1].number)
    second = anchored([*gap, first], gap[-1].number)
    state = fold([*gap, first, second])
    assert state.generation == first.number
    assert state.lines[-1].outcome == "lost"
    assert state.model("m").aliases() == {"champion": 2, "previous": 1}
    third = anchored([*gap, first, second], second.number)
    assert fold([*gap, first, second, third]).generation == third.number


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 4), st.booleans()), min_size=1, max_size=15),
    st.data(),
)
def test_any_ledger_however_it_was_broken_can_be_anchored_and_gone_on_with(
    attempts: list[tuple[str, int, bool]], data: st.DataObject
) -> None:
    entries: list[Entry] = []
    for kind, version, override in attempts:
        args = {"outcome": "passed"} if kind == "verdict" else {"override": True} if override else {}
        entries.append(Entry(len(entries) + 1, event(kind, version, fold(entries).head, **args).text()))
    hurt = data.draw(st.integers(0, len(entries) - 1))
    texts = [None, "{}", (entries[hurt].text or "").replace("ann", "eve")]
    entries[hurt] = Entry(hurt + 1, data.draw(st.sampled_from(texts)))
    entries = entries if data.draw(st.booleans()) else entries[:hurt] + entries[hurt + 1 :]
    if not entries:
        return
    state = fold([*entries, anchored(entries, entries[-1].number)])
    stages = list(state.model("m").stages.values())
    assert all(stages.count(stage) <= 1 for stage in ("champion", "challenger", "previous"))
    following = event("evaluate", 9, state.head)
    more = [*entries, anchored(entries, entries[-1].number), Entry(entries[-1].number + 2, following.text())]
    assert fold(more).model("m").stages[9] == "evaluating"


def test_a_plan_that_is_none_is_refused_and_digests_are_pinned_by_the_evaluation() -> None:
    state = fold(chain(*promoted(1, False), *promoted(2, True)[:2])).model("m")
    assert "its plan is none" in why_illegal(state, event("start", 2, GENESIS, plan=[{"share": 1}]))
    pinned = Event("e", "evaluate", "m", 5, {}, "ann", "2026-01-01", "", {"digest": "d5"}, GENESIS)
    other = Event(
        "f", "verdict", "m", 5, {"outcome": "passed"}, "eve", "2026-01-01", "", {"digest": "x"}, pinned.digest
    )
    assert fold([Entry(1, pinned.text()), Entry(2, other.text())]).model("m").digests == {5: "d5"}
