"""Everything that can be refused before work begins: addresses, files, scorers, expressions, an existing result."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightloom import storage
from sightloom.config import digest, flatten
from sightloom.data.dedup.references import Reference, resolve_references
from sightloom.data.derived import Derived, resolve_derived
from sightloom.data.embeddings import require_embeddings
from sightloom.data.ledger import Group
from sightloom.data.measure import COLUMNS, VERSION, base_types
from sightloom.data.recipe import Recipe, jsonable
from sightloom.data.scoring import ScorePlan
from sightloom.data.select.choose import Compiled, compile_selection
from sightloom.data.select.rows import COUNTED
from sightloom.data.select.types import check_types, require_number
from sightloom.data.shards.manifest import Manifest, read_manifest
from sightloom.data.shards.series import is_groupable
from sightloom.data.signals.config import ScoreConfig
from sightloom.data.signals.overlap import resolve_mask
from sightloom.data.signals.scorers import LOCAL, ClipSpec, is_weights_file, resolve
from sightloom.data.sources.chunks import SourceFile, list_files
from sightloom.data.sources.config import KeptType, Source, UrlSource
from sightloom.errors import UserMistake

MANIFEST = "manifest.json"
EMBEDDED = "-emb"


@dataclass(frozen=True)
class Prepared:
    """A recipe with everything looked up."""

    recipe: Recipe
    identity: dict[str, Any]
    specs: tuple[ClipSpec, ...]
    plan: ScorePlan
    selection: Compiled
    base_config: dict[str, Any]
    derived: tuple[Derived, ...]
    references: tuple[Reference, ...] = ()

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups of columns, base first, derived ones last."""
        return (*self.plan.groups, *(derived.group for derived in self.derived))

    @property
    def shard_folder(self) -> str:
        """Where the shards go."""
        return storage.join(self.recipe.out, "shards", self.recipe.name)

    @property
    def compared(self) -> tuple[str, ...]:
        """The scorers whose embeddings deduplication reads."""
        semantic = self.recipe.dedup.semantic
        own = () if semantic is None else (semantic.scorer,)
        return tuple(dict.fromkeys((*own, *(name for one in self.references for name in one.embedded))))

    @property
    def columns_of_scores(self) -> tuple[str, ...]:
        """The columns of scorers, banks and heads that are numbers."""
        return tuple(name for name, kind in _score_columns(self.specs, self.derived).items() if kind == "float")

    @property
    def columns(self) -> dict[str, str]:
        """The type of every column there will be, by name."""
        types = {name: str(kind) for name, (kind, _) in COLUMNS.items()} | {COUNTED: "int32"}
        types |= {f"src_{name}": kind for name, kind in self.plan.keep_fields.items()}
        return types | _score_columns(self.specs, self.derived)

    def store_bytes(self, measuring: int, actors: int) -> int:
        """Return what Ray's object store must hold: the cut pictures of all chunks that are under way at once."""
        row = sum(3 * crop.side**2 for crop in self.plan.crops)
        return (measuring + 2 * actors) * self.recipe.score.chunk_rows * row


def prepare(recipe: Recipe, replace: bool) -> Prepared:
    """Check a recipe against the world, and write nothing; UserMistake says what is wrong.

    Args:
        recipe: as given.
        replace: whether shards of another recipe under the same name may be replaced.
    """
    recipe = _absolute(recipe)
    identity = recipe_identity(recipe)
    resolved = [_group_of(recipe.out, spec) for spec in _scorers(recipe.score)]
    specs, clips = tuple(spec for spec, _ in resolved), tuple(group for _, group in resolved)
    keep: dict[str, KeptType] = {}
    for source in recipe.source:
        keep |= source.keep_fields
    base_config: dict[str, Any] = {
        "version": VERSION,
        "decode": recipe.score.decode.model_dump(mode="json"),
        "keep_fields": dict(sorted(keep.items())),
    }
    base_config |= {"mirror": True} if recipe.dedup.mirror else {}  # its own group, only where it is asked for
    base = Group.make(recipe.out, "base", base_config)
    crops = tuple(dict.fromkeys(spec.crop for spec in specs))
    plan = ScorePlan(
        base,
        clips,
        tuple(spec.scorer.kinds for spec in specs),
        tuple(crops.index(spec.crop) for spec in specs),
        crops,
        recipe.score.decode,
        keep,
        recipe.dedup.mirror,
    )
    taken = [*COLUMNS, COUNTED, *(f"src_{name}" for name in keep), *(spec.column for spec in specs)]
    derived = resolve_derived(recipe.out, recipe.score, specs, clips, taken)
    selection = compile_selection(recipe.select, [*taken, *_score_columns((), derived)])
    if recipe.dedup.semantic is not None:
        require_embeddings("dedup.semantic", recipe.dedup.semantic.scorer, specs)
    references = resolve_references(recipe.dedup, specs)
    prepared = Prepared(recipe, identity, specs, plan, selection, base_config, derived, references)
    preferred = recipe.dedup.prefer
    if preferred is not None:
        if preferred not in prepared.columns:
            have = f"have: {', '.join(sorted(prepared.columns))}"
            raise UserMistake(f"dedup.prefer names no column '{preferred}'", have)
        require_number("dedup.prefer", preferred, prepared.columns[preferred])
    check_types(selection, prepared.columns)
    _check_group(prepared.columns, recipe.pack.group_by)
    if not replace:
        refuse_other(prepared, None)
    return prepared


def _check_group(columns: dict[str, str], name: str | None) -> None:
    groups = sorted(column for column, kind in columns.items() if is_groupable(kind) and column != COUNTED)
    if name is not None and name not in groups:
        problem = f"is {columns[name]}, which names no series" if name in columns else "is not a column"
        raise UserMistake(f"pack.group_by: '{name}' {problem}", f"have: {', '.join(groups)}")


def open_out(prepared: Prepared, single_writer: bool) -> None:
    """Prove that OUT can be written, and say there what each group of columns is.

    Args:
        prepared: the recipe.
        single_writer: do without the store's conditional puts: the user sees to it that nobody else writes.
    """
    out = prepared.recipe.out
    storage.ensure_writable(out)
    if not single_writer:
        storage.ensure_exclusive(out)
    types = {name: str(kind) for name, kind in base_types(prepared.plan.mirror).items()}
    prepared.plan.base.describe(prepared.base_config, types)
    for group, spec in zip(prepared.plan.clips, prepared.specs, strict=True):
        group.describe(spec.identity(), {spec.column: "float"})
    for derived in prepared.derived:
        derived.group.describe(derived.spec.identity(), derived.spec.columns)


def _group_of(out: str, spec: ClipSpec) -> tuple[ClipSpec, Group]:
    """Return a scorer and its group of columns.

    Embeddings change no score and no fingerprint, but they cannot be added to what is committed: a group with them has
    a folder of its own. Where only that one exists, it serves (and grows, embeddings included) without them asked for.
    """
    plain, whole = (Group.make(out, spec.column, spec.identity(), more) for more in ("", EMBEDDED))
    described = [storage.exists(storage.join(group.folder, "group.json")) for group in (plain, whole)]
    if spec.scorer.embeddings or described == [False, True]:
        scorer = spec.scorer.model_copy(update={"embeddings": True})
        return dataclasses.replace(spec, scorer=scorer), whole
    return spec, plain


def _scorers(config: ScoreConfig) -> list[ClipSpec]:
    """Look up the scorers, in the recipe's order, then those that see their pictures once more with text covered."""
    specs = [resolve(scorer) for scorer in config.clip]
    if config.overlap is None:
        return specs
    mask = resolve_mask(config.overlap)
    return [*specs, *(spec.masked(mask) for spec in specs if spec.scorer.name in config.overlap.scorers)]


def _score_columns(specs: Sequence[ClipSpec], every: Sequence[Derived]) -> dict[str, str]:
    """Return the type of each column of scorers, banks and heads."""
    found = {spec.column: "float" for spec in specs}
    for derived in every:
        found |= derived.spec.columns
    return found


def recipe_identity(recipe: Recipe) -> dict[str, Any]:
    """Return the part of a recipe that decides the shards: no workers, no output, no report, no embeddings stored."""
    identity = jsonable(recipe)
    for name in ("out", "report", "fit"):
        identity.pop(name)
    for name in ("workers", "max_failed", *(("overlap",) if recipe.score.overlap is None else ())):
        identity["score"].pop(name)
    for scorer in identity["score"]["clip"]:
        scorer.pop("embeddings")
    return identity


def refuse_other(prepared: Prepared, plan_fingerprint: str | None, replace: bool = False) -> Manifest | None:
    """Return the finished manifest of this very recipe, None if there is none; UserMistake if it is another's.

    Args:
        prepared: the recipe.
        plan_fingerprint: of this run's plan once it is known; before, only the recipes are compared.
        replace: another's manifest may be replaced: it is as if there were none.
    """
    uri = storage.join(prepared.shard_folder, MANIFEST)
    if not storage.exists(uri):
        return None
    try:
        manifest = read_manifest(uri)
    except UserMistake:
        if replace:
            return None  # damaged or of another format: as good as none
        raise
    if replace:
        same = manifest.recipe == prepared.identity and manifest.fingerprints.get("plan") == plan_fingerprint
        return manifest if same else None
    where = f"the shards at '{prepared.shard_folder}' were made"
    todo = "choose another name, or give --replace"
    before, now = flatten(manifest.recipe), flatten(prepared.identity)
    changed = [
        f"{key} {before.get(key, 'absent')} -> {now.get(key, 'absent')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise UserMistake(f"{where} by another recipe: {'; '.join(changed[:8])}", todo)
    if plan_fingerprint is not None and manifest.fingerprints.get("plan") != plan_fingerprint:
        raise UserMistake(f"{where} from other input: source files or scorer weights changed since", todo)
    return manifest


def source_files(recipe: Recipe) -> list[list[SourceFile]]:
    """List the files of each source that is not a list of URLs (those are staged first)."""
    return [[] if isinstance(s, UrlSource) else list_files(s, recipe.score.chunk_rows) for s in recipe.source]


def describe_source(source: Source, files: list[SourceFile]) -> dict[str, Any]:
    """Return a source's line in the manifest."""
    listing = [[file.uri, file.size, file.version] for file in files]
    return {
        "kind": source.kind,
        "uri": source.uri,
        "files": len(files),
        "bytes": sum(file.size for file in files),
        "listing_sha256": digest(listing),
    }


def _absolute(recipe: Recipe) -> Recipe:
    """Make local addresses absolute: workers have other working folders."""
    data = recipe.model_dump()
    data["out"] = _path(data["out"])
    for source in data["source"]:
        source["uri"] = _path(source["uri"])
    for scorer in data["score"]["clip"]:
        if scorer["model"].startswith(LOCAL):
            scorer["model"] = LOCAL + _path(scorer["model"].removeprefix(LOCAL))
        if scorer["pretrained"] is not None and is_weights_file(scorer["pretrained"]):
            scorer["pretrained"] = _path(scorer["pretrained"])
    if recipe.score.overlap is not None and recipe.score.overlap.detector is not None:
        data["score"]["overlap"]["detector"] = _path(recipe.score.overlap.detector)
    for head in data["score"]["heads"]:
        head["weights"] = _path(head["weights"])
    for evaluation in data["dedup"]["decontaminate"]:
        evaluation["scores"] = _path(evaluation["scores"])
    return Recipe.model_validate(data)


def _path(uri: str) -> str:
    return str(Path(storage.local_path(uri)).absolute()) if storage.is_local(uri) else uri
