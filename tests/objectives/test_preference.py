import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightloom.objectives.preference import dpo_loss, ipo_loss, num_right, preference_margin, reward_loss

# Golden vectors: TRL 1.16.0's own DPOTrainer._compute_loss and RewardTrainer.compute_loss on four pairs whose token
# log-probabilities sum to these; smoothed: its `aot` on one pair at a time, which is the smoothed sigmoid there.
TOKENS = torch.tensor([5, 3, 4, 6, 3, 6, 4, 2], dtype=torch.float64)
POLICY = torch.tensor([-11.108, -3.333, -5.7, -8.911, -4.116, -9.566, -6.65, -3.271], dtype=torch.float64)
REFERENCE = torch.tensor([-13.36, -3.144, -4.028, -7.874, -3.904, -9.025, -4.958, -3.337], dtype=torch.float64)
SIGMOID = {
    (0.1, 0.0): [0.5775171796616932, 0.6757020525646676, 0.692147680559862, 0.749817171529702],
    (0.5, 0.0): [0.25596582010459823, 0.6090141933945024, 0.6881596805078624, 1.0064439458234227],
    (0.1, 0.1): [0.6021571796616934, 0.6792220525646677, 0.6923476805598621, 0.738787171529702],
    (0.5, 0.3): [0.6255658201045983, 0.6618141933945023, 0.6911596805078623, 0.8409939458234227],
}
IPO = {
    0.1: [20.060843804444442, 24.729071361111107, 24.950025, 27.100700694444445],
    0.5: [0.22937713777777777, 0.9464046944444444, 0.9900250000000003, 1.4540340277777777],
}
REWARD = [
    (1.5, 0.25, 0.0, 0.2519290813453729),
    (-0.5, 2.0, 0.0, 2.5788897342925496),
    (0.3, 0.1, 0.5, 0.8543552444685272),
    (2.0, -1.0, 1.25, 0.16022415043808722),
]
finite = st.floats(-30, 30)


def margin(policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return preference_margin(policy[:4], policy[4:], reference[:4], reference[4:])


@pytest.mark.parametrize("options", SIGMOID)
def test_dpo_equals_trl(options: tuple[float, float]) -> None:
    ours = [float(dpo_loss(one[None], *options)) for one in margin(POLICY, REFERENCE)]
    assert ours == pytest.approx(SIGMOID[options], rel=1e-12)
    assert float(dpo_loss(margin(POLICY, REFERENCE), *options)) == pytest.approx(sum(SIGMOID[options]), rel=1e-12)


@pytest.mark.parametrize("beta", IPO)
def test_ipo_on_token_means_equals_trl(beta: float) -> None:
    ours = [float(ipo_loss(one[None], beta)) for one in margin(POLICY / TOKENS, REFERENCE / TOKENS)]
    assert ours == pytest.approx(IPO[beta], rel=1e-12)


@pytest.mark.parametrize(("chosen", "rejected", "margin", "expected"), REWARD)
def test_the_reward_loss_equals_trl(chosen: float, rejected: float, margin: float, expected: float) -> None:
    pair = (torch.tensor([chosen], dtype=torch.float64), torch.tensor([rejected], dtype=torch.float64))
    assert float(reward_loss(*pair, margin)) == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.tuples(finite, finite, finite, finite), min_size=1, max_size=5), st.floats(0.01, 1.0))
def test_the_gradient_pushes_the_pair_apart_and_leaves_the_reference(
    rows: list[tuple[float, float, float, float]], beta: float
) -> None:
    columns = [torch.tensor(column, dtype=torch.float64, requires_grad=True) for column in zip(*rows, strict=True)]
    dpo_loss(preference_margin(*columns), beta).backward()
    chosen, rejected, *reference = (column.grad for column in columns)
    assert bool((chosen <= 0).all()) and torch.equal(chosen, -rejected)
    assert reference == [None, None]


def test_equal_models_lose_a_coins_toss_and_order_no_pair() -> None:
    even = margin(POLICY, POLICY)
    assert float(dpo_loss(even, 0.3)) == pytest.approx(4 * math.log(2))
    assert num_right(even) == 2.0
    assert num_right(margin(POLICY, REFERENCE)) == 3.0
