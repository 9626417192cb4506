"""The samples of a run: manifests with their length indexes as one numbered list of rows, and what a stage draws on."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from sightloom.data.select.expressions import compile_expression
from sightloom.data.shards.heldout import heldout_mask
from sightloom.data.shards.manifest import Manifest, read_manifest
from sightloom.data.shards.reader import Sample, SampleReader, read_table
from sightloom.errors import UserMistake
from sightloom.training.curriculum import Stage
from sightloom.training.index import LengthIndex, read_index
from sightloom.training.objective_options import AlignObjective, RlObjective
from sightloom.training.order import OrderSource, Rows


@dataclass(frozen=True, slots=True)
class Picked:
    """A sample with its picture decoded."""

    row: int
    sample: Sample
    image: Image.Image | None


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a stage draws on from one entry of its mixture; `dropped` counts the rows it cannot use, by reason."""

    name: str
    manifest: str | None
    weight: float
    rows: Rows
    domains: tuple[str, ...]
    dropped: dict[str, int]


class DamagedPicture(ValueError):
    """A picture's bytes differ from those that were packed."""


class Corpus:
    """All rows of a run's manifests, one after the other.

    Args:
        parts: (address of a manifest, path of its length index), the run's own manifest first.
        heldout: share of pictures that never train.
    """

    def __init__(self, parts: Sequence[tuple[str, str]], heldout: float) -> None:
        self._manifests: list[Manifest] = [read_manifest(uri) for uri, _ in parts]
        self._numbers = {uri: number for number, (uri, _) in enumerate(parts)}
        indexes: list[LengthIndex] = [read_index(path) for _, path in parts]
        self._starts = np.cumsum([0, *(len(index) for index in indexes)])
        self._readers = [SampleReader(manifest) for manifest in self._manifests]
        self._tables = [read_table(manifest) for manifest in self._manifests]
        self._held = [heldout_mask(table, heldout) for table in self._tables]
        self.shard = np.concatenate([index.shard for index in indexes])
        self.offset = np.concatenate([index.offset for index in indexes])
        self.size = np.concatenate([index.size for index in indexes])
        self.direct = np.concatenate([index.direct for index in indexes])
        self.thinking = np.concatenate([index.thinking for index in indexes])
        self.patches = np.concatenate([index.patches for index in indexes])

    def select(self, where: str | None, manifest: str | None = None, held_out: bool = False) -> Rows:
        """Rows that an expression over the shard tables' columns chooses, without (or only) the held-out pictures.

        Raises:
            UserMistake: the expression does not compile.
        """
        number = self._numbers[manifest] if manifest is not None else 0
        table, held = self._tables[number], self._held[number]
        chosen = held if held_out else ~held
        if where:
            mask = compile_expression(where, table.column_names).mask(table)
            chosen = chosen & np.asarray(mask).astype(bool)
        return np.flatnonzero(chosen).astype(np.int64) + int(self._starts[number])

    def column(self, name: str, rows: Rows) -> list[Any]:
        """Values of a shard-table column, by row."""
        whole = pa.chunked_array([chunk for table in self._tables for chunk in table.column(name).chunks])
        return list(whole.take(pa.array(rows)).to_pylist())

    def domains(self, rows: Rows) -> npt.NDArray[np.str_]:
        """The domain of each row."""
        return np.asarray(self.column("domain", rows), dtype=np.str_)

    def pick(self, row: int) -> Picked:
        """Read one sample and decode its picture.

        Raises OSError or ValueError on a picture that cannot be read, or is not the one that the shard table names.
        """
        number = int(self._part_of(np.array([row]))[0])
        sample = self._readers[number].read(int(self.shard[row]), int(self.offset[row]), int(self.size[row]))
        if sample.image is None:
            return Picked(row, sample, None)
        written = self._tables[number].column("sha256")[row - int(self._starts[number])].as_py()
        if hashlib.sha256(sample.image).hexdigest() != written:
            raise DamagedPicture(f"the picture of '{sample.uid}' is not what was written: its SHA-256 differs")
        with Image.open(io.BytesIO(sample.image)) as opened:
            return Picked(row, sample, opened.convert("RGB"))

    def sources(self, stage: Stage) -> list[OrderSource]:
        """The stage's mixture as sources of the order; `by: domain` becomes one source a domain.

        Raises:
            UserMistake: a source holds no sample that fits, or its expression does not compile.
        """
        sources = []
        for drawn in self.drawn(stage):
            rows, name = drawn.rows, drawn.name
            by = stage.mix[name].by == "domain"
            domains = self.domains(rows) if by else np.full(len(rows), "", dtype=np.str_)
            kinds = sorted(set(domains.tolist()))
            for domain in kinds:
                part = rows[domains == domain]
                label = f"{name}/{domain}" if domain else name
                shards = self.shard[part].astype(np.int64) + (self._part_of(part) << 32)
                sources.append(OrderSource(label, drawn.weight / len(kinds), part, shards))
        return sources

    def drawn(self, stage: Stage) -> list[Drawn]:
        """The rows of each entry of the stage's mixture, by name, and how many it cannot use and why.

        Raises:
            UserMistake: an entry holds no sample that fits, or its expression does not compile.
        """
        entries, lengths = [], self.lengths(stage)
        for name, source in sorted(stage.mix.items()):
            chosen = self.select(source.where, source.manifest)
            usable = self._usable(chosen, stage)
            long = lengths[usable] > stage.batch.max_tokens
            large = ~long & (self.patches[usable] > stage.batch.max_patches)
            rows = usable[~long & ~large]
            counts = {
                "nothing to learn": len(chosen) - len(usable),
                "too many tokens": int(long.sum()),
                "too many patches": int(large.sum()),
            }
            dropped = {reason: count for reason, count in counts.items() if count}
            if len(rows) == 0:
                told = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "it chooses none"
                raise UserMistake(
                    f"stage '{stage.name}', mix.{name}: nothing to train on is left ({told})",
                    f"look at its `where` ({source.where or 'none'}), at batch.max_tokens and batch.max_patches",
                )
            domains = tuple(sorted(set(self.domains(rows).tolist())))
            entries.append(Drawn(name, source.manifest, source.weight, rows, domains, dropped))
        return entries

    def _usable(self, rows: Rows, stage: Stage) -> Rows:
        """Rows to learn from: pairs for align, answerable prompts for rl, preferences for dpo and rm, else turns."""
        kinds, turns, answers = (np.array(self.column(name, rows)) for name in ("kind", "turns", "answer_kind"))
        if stage.objective.kind == "align":
            return rows[kinds == "pair"]
        if stage.objective.kind == "rl":
            return rows[answers != None]  # noqa: E711  elementwise
        if stage.objective.kind in ("dpo", "rm"):
            return rows[kinds == "preference"]
        return rows[(kinds == "pair") | ((kinds == "conversation") & (turns.astype(np.float64) > 0))]

    def lengths(self, stage: Stage) -> npt.NDArray[np.int32]:
        """Tokens of every row in the stage's rendering."""
        objective = stage.objective
        plain = isinstance(objective, AlignObjective | RlObjective) or not objective.reasoning
        return self.direct if plain else self.thinking

    def _part_of(self, rows: Rows) -> Rows:
        return np.searchsorted(self._starts, rows, side="right").astype(np.int64) - 1
