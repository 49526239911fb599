"""A training step costs its network calls, forward and backward, and little more."""

import torch

NFE = 4
LIMIT = 1.25  # beside the network: the trace, its gradient, Adam, the weight average


def test_a_gs_step_costs_its_network_calls_and_little_more(side_by_side, make_fit) -> None:
    """Base: forward and backward of the network alone, with respect to its input."""
    fit = make_fit("store", NFE)
    backbone, pairs = fit.lesson.backbone, fit.lesson.train
    rows = slice(0, fit.spec.batch)
    x, labels = pairs.noise[rows].clone().requires_grad_(), pairs.condition[rows].labels
    sigma = torch.ones(())

    def bare() -> None:
        for _ in range(NFE):
            torch.autograd.grad(backbone.network(x, sigma, labels).sum(), x)

    ratio = side_by_side(fit.advance, bare, 25)
    assert ratio <= LIMIT


def test_recomputing_costs_one_more_forward_pass_a_call(side_by_side, make_fit) -> None:
    """Base: the same step that stores activations; a forward pass is some 45 % of it."""
    ratio = side_by_side(make_fit("recompute", NFE).advance, make_fit("store", NFE).advance, 25)
    assert ratio <= 1.7
