"""What a gate asks and who answers: the version behind the endpoint that will serve it, or a process of its own."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from sightloom.errors import SightloomError, UserMistake
from sightloom.evaluation.answerers import Answerer, LocalAnswerer
from sightloom.evaluation.endpoint import EndpointAnswerer, NotNow, Unreachable, listed_models
from sightloom.evaluation.evaluate import measure
from sightloom.evaluation.examples import Example
from sightloom.evaluation.gate import GateRules
from sightloom.evaluation.remember import Remembering
from sightloom.evaluation.result import Identity, Result
from sightloom.evaluation.suites import Suite
from sightloom.model.load import load
from sightloom.progress import Progress
from sightloom.promotion.ledger import Ledger
from sightloom.registry import Registry, Version

_LOOK_S: Final = 1.0


class Asker(Protocol):
    """Makes registered versions answer. `words`: where, for reports."""

    words: str
    key: str

    def asked(self, version: Version, thinking_budget: int | None) -> AbstractContextManager[Answerer]:
        """The version, ready to answer until the block ends."""


class InProcess:
    """Loads a version here, its files verified first."""

    words, key = "a process of its own", ""

    def __init__(self, registry: Registry, cache: Path) -> None:
        self._registry, self._cache = registry, cache

    @contextmanager
    def asked(self, version: Version, thinking_budget: int | None) -> Iterator[Answerer]:
        """See `Asker.asked`; raises SightloomError where a file is not the registered one."""
        vlm = load(str(self._registry.materialize(version, self._cache)))
        yield LocalAnswerer(vlm, thinking_budget=thinking_budget)


class Pinned:
    """Asks versions by name through a running endpoint, so that template, engine and limits are measured with them.

    Args:
        address: the endpoint's.
        key: with the scopes infer and pin; empty for none.
        elsewhere: answers for a version that the endpoint does not hold, such as a baseline that is retired.
    """

    def __init__(self, address: str, key: str, elsewhere: Asker) -> None:
        self.address, self.key, self.words = address, key, f"{address}, by version"
        self._elsewhere = elsewhere

    @contextmanager
    def asked(self, version: Version, thinking_budget: int | None) -> Iterator[Answerer]:
        """See `Asker.asked`."""
        if version.reference not in listed_models(self.address, self.key):
            with self._elsewhere.asked(version, thinking_budget) as answerer:
                yield answerer
            return
        endpoint = EndpointAnswerer(self.address, version.reference, self.key, thinking_budget)
        try:
            yield endpoint
        finally:
            endpoint.close()


@dataclass(frozen=True, slots=True)
class Exam:
    """What a gate asks: its rules, and the suite with its questions. `answers`: the folder of baselines' answers."""

    rules: GateRules
    suite: Suite
    examples: list[Example]
    answers: Path | None = None

    def measured(self, asker: Asker, version: Version, progress: Progress, remembered: bool = False) -> Result:
        """One version's result, with the gate's decoding; `remembered`: what it answered before is not asked again."""
        rules = self.rules
        suite = self.suite.model_copy(update={"decoding": rules.decoding, "statistics": rules.statistics})
        with ExitStack() as held:
            with progress.step(f"load {version.reference}"):
                asked = held.enter_context(asker.asked(version, rules.decoding.thinking_token_budget))
            if remembered and self.answers is not None:
                asked = Remembering(asked, self.answers, version.digest, rules.decoding)
            found = measure(suite, self.examples, (), asked, progress, asker.key)
        return found.by(Identity(version.name, str(version.version), version.digest))


def wait_until_pinned(
    address: str,
    key: str,
    ledger: Ledger,
    version: Version,
    timeout_s: float = 900.0,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Wait until a version under evaluation can be asked by its name.

    An endpoint that is too busy for a while, or that has answered before and is away, is asked again.

    Raises:
        UserMistake: nothing listens at the address, or it refuses the key or shows it no versions.
        SightloomError: the version was taken back, or did not come up in time.
    """
    until, answered, trouble = clock() + timeout_s, False, ""
    while True:
        names: list[str] = []
        try:
            names, answered, trouble = listed_models(address, key, patience_s=0), True, ""
        except NotNow as error:
            trouble = error.message
        except Unreachable as error:
            if not answered:
                raise
            trouble = error.message
        if version.reference in names:
            return
        its = ledger.read().model(version.name)
        stage = its.stages.get(version.version, "")
        if stage != "evaluating":
            raise SightloomError(
                f"{version.reference} is not under evaluation any more ({stage or 'unknown'})", "see: sightloom history"
            )
        if version.name in names and f"{version.name}:{its.champion}" not in names:
            raise UserMistake(
                f"{address} shows no versions to this key", "give SIGHTLOOM_API_KEY a key with the scope 'pin'"
            )
        if clock() > until:
            raise SightloomError(
                f"{version.reference} could not be asked through {address} within {timeout_s:g} s"
                + (f": {trouble}" if trouble else ""),
                "the replica's log names the cause; sightloom abort takes the version back",
            )
        time.sleep(_LOOK_S)
