from sightloom.training.rollout_page import page

ROW = {
    "uid": "a", "domain": "ui", "task": "count", "question": "How many <b>cups</b>?", "truth": "3", "thinking": "1 + 2",
    "answer": "<script>alert(1)</script>", "reward": 0.9, "accuracy": 1.0, "format": 1.0, "length": float("nan"),
    "detail": "right", "advantage": 0.5, "finish": "stop", "seed": "9",
}  # fmt: skip


def test_a_page_shows_a_groups_picture_once_and_runs_nothing_that_a_model_wrote() -> None:
    text = page(10, [ROW, ROW, ROW | {"uid": "b", "accuracy": 0.0}], ['data:image/png;base64,"x', "data:,", "data:,b"])
    assert "<script>" not in text and "&lt;script&gt;" in text and "&lt;b&gt;cups" in text
    assert text.count("<img") == 2 and 'base64,"x' not in text
    assert text.count('class="right') == 2
