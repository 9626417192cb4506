"""From predictions to judged rows."""

from collections.abc import Sequence
from dataclasses import replace

from sightloom.evaluation.answerers import Prediction
from sightloom.evaluation.captions import Cosines, cider_d, clip_scores
from sightloom.evaluation.chance import said
from sightloom.evaluation.examples import Example
from sightloom.evaluation.result import Row
from sightloom.evaluation.scoring import is_right, relaxed
from sightloom.objectives.rewards import score


def judge(
    examples: Sequence[Example], predictions: Sequence[Prediction], cosines: Cosines | None = None
) -> tuple[Row, ...]:
    """One row an example, in order; captions are scored together, as CIDEr-D's weights come from all references.

    Args:
        examples: what was asked.
        predictions: what was answered, in the same order.
        cosines: a CLIP model's cosine of each picture with its caption, for `clip_score`; None: no such score.
    """
    rows = [_row(example, prediction) for example, prediction in zip(examples, predictions, strict=True)]
    captions = [index for index, example in enumerate(examples) if example.kind == "caption"]
    if captions:
        references = [[str(answer.value) for answer in examples[index].answers] for index in captions]
        scores = cider_d([rows[index].prediction for index in captions], references)
        for index, value in zip(captions, scores, strict=True):
            rows[index] = replace(rows[index], scores={"cider": value})
    if captions and cosines is not None:
        shown = [index for index in captions if examples[index].image is not None]
        images = [image for index in shown if (image := examples[index].image) is not None]
        for index, value in zip(shown, clip_scores(cosines(images, [rows[i].prediction for i in shown])), strict=True):
            rows[index].scores["clip_score"] = value if rows[index].prediction else 0.0
    return tuple(rows)


def _row(example: Example, prediction: Prediction) -> Row:
    answered = prediction.error is None and example.kind != "caption"
    content = prediction.content if answered else ""
    rewards = [score(content, answer).value for answer in example.answers]
    return Row(
        suite=example.suite,
        id=example.id,
        domain=example.domain,
        task=example.task,
        kind=example.kind,
        group=example.group,
        needs_steps=example.needs_steps,
        image_sha256=example.image_sha256,
        prompt=example.question,
        expected=" | ".join(said(answer) for answer in example.answers),
        prediction=prediction.content,
        reasoning=prediction.thinking,
        right=any(is_right(content, answer) for answer in example.answers),
        scores={
            "reward": max((value for value in rewards if value == value), default=0.0),  # NaN: the scorer failed
            "relaxed": float(any(relaxed(content, answer) for answer in example.answers)),
        },
        thinking=prediction.thinking_outcome,
        well_formed=prediction.well_formed,
        tokens=prediction.num_tokens,
        latency_ms=round(prediction.latency_ms, 3),
        finish=prediction.finish,
        error=prediction.error,
        source="",
    )
