"""The mixture prior: closed forms against Monte Carlo and by hand."""

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from training.mixture import matched_accuracy, mixture_kl, mutual_information, responsibilities


def components(count: int, dim: int) -> torch.Tensor:
    return 3 * torch.eye(count, dim)


def test_responsibilities_are_bayes() -> None:
    means = components(3, 4)
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    densities = torch.stack([Independent(Normal(m, 1.0), 1).log_prob(z) for m in means], 1)
    assert torch.allclose(responsibilities(z, means), torch.softmax(densities, 1), atol=1e-6)


def test_kl_is_an_upper_bound_that_the_exact_one_approaches() -> None:
    torch.manual_seed(0)
    means = components(3, 4)
    mean, log_variance = means[1] + 0.1 * torch.randn(1, 4), torch.full((1, 4), -0.5)
    pi = responsibilities(mean, means)
    bound = float(mixture_kl(mean, log_variance, pi, means))
    q = Independent(Normal(mean[0], torch.exp(0.5 * log_variance[0])), 1)
    p = MixtureSameFamily(Categorical(torch.ones(3)), Independent(Normal(means, torch.ones(3, 4)), 1))
    draws = q.sample((20_000,))
    exact = float((q.log_prob(draws) - p.log_prob(draws)).mean())
    assert exact - 0.02 < bound < exact + 0.2


def test_one_component_at_the_origin_is_the_usual_kl() -> None:
    mean, log_variance = torch.tensor([[0.5, -1.0]]), torch.tensor([[0.2, -0.3]])
    usual = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()
    got = mixture_kl(mean, log_variance, torch.ones(1, 1), torch.zeros(1, 2))
    assert float(got) == pytest.approx(float(usual))


def test_mutual_information_wants_agreement_and_every_cluster() -> None:
    sure = torch.eye(4).repeat(5, 1)
    assert float(mutual_information(sure, sure)) == pytest.approx(math.log(4), abs=1e-4)
    assert float(mutual_information(sure, torch.full((20, 4), 0.25))) == pytest.approx(0, abs=1e-4)
    merged = sure.clone()
    merged[:, 0] += merged[:, 1]
    merged[:, 1] = 0
    assert float(mutual_information(merged, merged)) < math.log(4) - 0.3


def test_matched_accuracy_over_names_and_numbers_of_clusters() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    assert matched_accuracy(torch.tensor([2, 2, 0, 0, 1, 1]), labels) == 1
    assert matched_accuracy(torch.tensor([0, 0, 0, 0, 1, 1]), labels) == pytest.approx(4 / 6)
    assert matched_accuracy(torch.tensor([5, 5, 4, 3, 1, 1]), labels) == pytest.approx(5 / 6)
