"""What a stage's model can do: held-out questions (after alignment: captions), answered greedily by its export."""

from pathlib import Path

from sightloom.evaluation.answerers import LocalAnswerer
from sightloom.evaluation.examples import Example
from sightloom.evaluation.result import Decoding, save
from sightloom.evaluation.runner import evaluate
from sightloom.evaluation.suites import from_manifest
from sightloom.model.load import VLM
from sightloom.progress import Progress
from sightloom.training.curriculum import Stage
from sightloom.training.notes import PREVIEWS
from sightloom.training.previews import write_previews
from sightloom.training.run_options import Data


class Examiner:
    """Asks every stage's model the same held-out questions."""

    def __init__(self, data: Data, seed: int, progress: Progress) -> None:
        self._data, self._seed, self._progress = data, seed, progress
        self._examples: dict[tuple[int, bool], list[Example]] = {}

    def ask(self, vlm: VLM, stage: Stage, folder: Path | None = None, previews: Path | None = None) -> dict[str, float]:
        """Accuracy per domain, over all, on questions that need steps, and the share of well-formed answers.

        A model that was only aligned describes held-out pictures instead: CIDEr-D per domain and over all.
        The rows are kept in `folder`, samples with their pictures in `previews`, where they are given.
        """
        options = stage.evaluate
        captions = stage.objective.kind == "align"
        examples = self._read(min(options.per_domain, self._data.heldout_max), captions)
        decoding = Decoding(thinking=options.thinking, max_new_tokens=options.max_new_tokens)
        result = evaluate(examples, LocalAnswerer(vlm, options.batch), decoding, progress=self._progress)
        if folder is not None:
            save(result, str(folder))
        if previews is not None:
            write_previews(result, examples, f"Stage {stage.name}", previews, PREVIEWS)
        metric = result.overall.metric
        metrics = {f"eval/{name}/{metric}": measure.value for name, measure in result.domains.items()}
        metrics |= {f"eval/all/{metric}": result.overall.value}
        if captions:
            return metrics
        metrics |= {
            "eval/all/questions": float(result.overall.n),
            "eval/format/well_formed": result.format["well_formed"].value,
        }
        if result.needs_steps is not None:
            metrics["eval/steps/accuracy"] = result.needs_steps.value
        return metrics

    def _read(self, per_domain: int, captions: bool) -> list[Example]:
        if (per_domain, captions) not in self._examples:
            self._examples[per_domain, captions] = from_manifest(
                self._data.manifest, self._data.heldout, "", per_domain, self._seed, captions=captions
            )
        return self._examples[per_domain, captions]
