import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sightloom.objectives.advantages import along_prefixes, dr_grpo, g2rpo, grpo, rloo

GROUPS = st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0, float("nan")])), min_size=1, max_size=9)
METHODS = [grpo, dr_grpo, rloo, g2rpo]

GOLDEN = [  # training.md §6
    ([0, 0, 0, 0, 1], [-0.3204] * 4 + [1.2816]),
    ([0.1, 0.1, 0.1, 0.2, 1], [-0.6020] * 3 + [0.5244, 1.2816]),
    ([0, 0, 1, 1, 1], [-0.9030] * 2 + [0.6020] * 3),
    ([0.81, 0.81, 0.82, 0.82, 0.83], [-0.9030] * 2 + [0.2622] * 2 + [1.2816]),
    ([0.5] * 5, [0.0] * 5),
    ([1] + [0] * 7, [1.5341] + [-0.2192] * 7),
    ([1] * 2 + [0] * 6, [1.2106] * 2 + [-0.4035] * 6),
    ([1] * 3 + [0] * 5, [0.9700] * 3 + [-0.5820] * 5),
    ([1] * 4 + [0] * 4, [0.7668] * 4 + [-0.7668] * 4),
]


@pytest.mark.parametrize(("rewards", "wanted"), GOLDEN)
def test_g2rpo_golden_vectors(rewards: list[float], wanted: list[float]) -> None:
    ours = g2rpo(torch.tensor([rewards], dtype=torch.float64))[0]
    np.testing.assert_allclose(ours, wanted, atol=6e-5)  # the vectors have four decimals


@pytest.mark.parametrize(("n", "variance"), [(2, 0.4549), (4, 0.7124), (5, 0.7669), (8, 0.8511), (16, 0.9237)])
def test_the_variance_without_ties_is_not_one_until_it_is_asked_for(n: int, variance: float) -> None:
    rewards = torch.linspace(0, 1, n, dtype=torch.float64)[None]
    assert float(g2rpo(rewards).square().mean()) == pytest.approx(variance, abs=6e-5)
    assert float(g2rpo(rewards, unit_variance=True).square().mean()) == pytest.approx(1)


def test_the_released_code_leaves_group_means_that_recentring_removes() -> None:
    solved = [[1.0] + [0.0] * 7, [1.0] * 7 + [0.0]] * 2
    rewards, tasks = torch.tensor(solved, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    shifted = g2rpo(rewards, tasks, scope="group+task")
    quantiles = stats.norm.ppf((np.arange(1, 33) - 0.5) / 32)
    low, high = quantiles[2:16].mean(), quantiles[30:].mean()  # the 14 wrong of the easy-to-miss, the 2 lone right ones
    wanted = (high + 7 * low) / 8
    np.testing.assert_allclose(shifted.mean(-1), [wanted, -wanted] * 2, atol=1e-12)
    assert g2rpo(rewards, tasks, scope="group+task", recenter=True).mean(-1).abs().max() < 1e-12
    with pytest.raises(ValueError, match="task"):
        g2rpo(rewards, scope="group+task")


@pytest.mark.parametrize("method", METHODS)
@given(group=GROUPS)
def test_advantages_sum_to_zero_and_the_unscorable_have_none(method, group: list[float]) -> None:
    advantages = method(torch.tensor([group], dtype=torch.float64))[0]
    assert not advantages.isnan().any()
    assert (advantages[torch.tensor(group).isnan()] == 0).all()
    assert abs(float(advantages.sum())) < 1e-9


@pytest.mark.parametrize("method", METHODS)
@given(group=GROUPS, seed=st.integers(0, 99))
def test_advantages_are_permuted_with_the_rewards_and_do_not_see_nan(method, group: list[float], seed: int) -> None:
    rewards = torch.tensor([group], dtype=torch.float64)
    order = torch.randperm(len(group), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(method(rewards[:, order]), method(rewards)[:, order], atol=1e-9, rtol=0)
    scored = rewards[:, ~rewards[0].isnan()]
    if scored.shape[1]:
        torch.testing.assert_close(method(rewards)[:, ~rewards[0].isnan()], method(scored), atol=1e-9, rtol=0)


@given(group=GROUPS)
def test_g2rpo_keeps_the_order_gives_ties_the_same_and_ignores_monotone_changes(group: list[float]) -> None:
    rewards = torch.tensor([group], dtype=torch.float64).round(decimals=3)
    advantages = g2rpo(rewards)[0]
    for i, j in itertools.combinations(range(len(group)), 2):
        if rewards[0, i] < rewards[0, j]:
            assert advantages[i] < advantages[j]
        if rewards[0, i] == rewards[0, j]:
            assert advantages[i] == advantages[j]
    torch.testing.assert_close(g2rpo(rewards * 7 + 3)[0], advantages)


def test_g2rpo_without_ties_is_scipys_normal_quantile_of_the_rank() -> None:
    rewards = np.random.default_rng(0).permutation(11) / 11
    ours = g2rpo(torch.tensor(rewards)[None])[0]
    np.testing.assert_allclose(ours, stats.norm.ppf((stats.rankdata(rewards) - 0.5) / 11), atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_equal_rewards_and_lone_responses_give_zero_advantage(method) -> None:
    assert (method(torch.full((2, 4), 0.7)) == 0).all()
    assert (method(torch.tensor([[1.0], [0.0]])) == 0).all()
    assert (method(torch.tensor([[1.0, float("nan"), float("nan")]])) == 0).all()


def test_the_simple_methods_equal_their_definitions() -> None:
    rewards = torch.rand(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, sigma = rewards.mean(-1, keepdim=True), rewards.std(-1, keepdim=True)
    torch.testing.assert_close(grpo(rewards), (rewards - mean) / (sigma + 1e-4))
    torch.testing.assert_close(dr_grpo(rewards), rewards - mean)
    others = torch.stack([torch.cat([rewards[:, :i], rewards[:, i + 1 :]], 1).mean(-1) for i in range(8)], 1)
    torch.testing.assert_close(rloo(rewards), rewards - others)


def test_credit_stays_where_the_responses_part() -> None:
    responses = [[1, 2, 3, 9], [1, 2, 4, 9], [1, 5, 6, 9], [1, 5, 6, 9]]
    found = along_prefixes([1.0, -1.0, 0.5, -0.5], responses)
    assert found == [[0, 0, 1, 0], [0, 0, -1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert along_prefixes([2.0, -1.0, -1.0], [[7], [8, 3], [8]]) == [[2.0], [-1.0, 0.0], [-1.0]]


@given(
    group=st.lists(
        st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.floats(-2, 2)), min_size=2, max_size=8
    )
)
def test_the_credits_of_a_response_add_up_to_those_that_ended_with_it(group: list[tuple[list[int], float]]) -> None:
    responses, advantages = [tokens for tokens, _ in group], [value for _, value in group]
    mean = sum(advantages) / len(advantages)
    for tokens, row in zip(responses, along_prefixes(advantages, responses), strict=True):
        through = [a for other, a in zip(responses, advantages, strict=True) if other[: len(tokens)] == tokens]
        assert sum(row) == pytest.approx(sum(through) / len(through) - mean, abs=1e-9)


def test_credit_along_prefixes_has_the_policy_gradients_mean_and_less_noise() -> None:
    # two tokens of two choices each: the first decides alone, so what the second is blamed for is noise
    logits = torch.tensor([[0.3, 0.0], [-0.2, 0.1]], dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    gradients: dict[str, list[torch.Tensor]] = {"response": [], "prefix": []}
    for _ in range(400):
        choices = torch.multinomial(logits.detach().softmax(-1), 16, replacement=True, generator=generator).T  # [16, 2]
        rewards = (choices[:, 0] == 0).double()
        advantages = (rewards - rewards.mean()).tolist()
        rows = {
            "response": torch.tensor(advantages, dtype=torch.float64)[:, None].expand(-1, 2),
            "prefix": torch.tensor(along_prefixes(advantages, choices.tolist()), dtype=torch.float64),
        }
        logprobs = logits.log_softmax(-1)[torch.arange(2), choices]
        for name, credit in rows.items():
            gradients[name].append(torch.autograd.grad((credit * logprobs).sum() / 16, logits, retain_graph=True)[0])
    stacked = {name: torch.stack(found) for name, found in gradients.items()}
    means = {name: found.mean(0) for name, found in stacked.items()}
    assert means["response"][0, 0] > 0.1
    torch.testing.assert_close(means["prefix"], means["response"], atol=0.01, rtol=0)  # 400 draws of 16
    assert float(stacked["prefix"][:, 1].var(0).sum()) < 0.1 * float(stacked["response"][:, 1].var(0).sum())
