"""Claims about the rules of crossing: each reads the two laws as it says (what is written: test_lockstep.py)."""

from __future__ import annotations

import math
from functools import partial

import torch

from shiftscope.core import crossing
from shiftscope.core.crossing import Laws
from shiftscope.core.laws import Workspace


def test_two_laws_without_a_common_token_do_not_exceed_ln_2():
    logp = torch.full((1, 4), -torch.inf)
    p, q = logp.clone(), logp.clone()
    p[0, 0], q[0, 3] = 0.0, 0.0
    workspace = Workspace(1, 4, torch.device("cpu"))
    values = workspace.divergences(workspace.laws(p, q))
    laws = Laws(
        p,
        q,
        values["js_nats"],
        *[values["js_nats"]] * 2,
        torch.tensor([0]),
        torch.tensor([3]),
        torch.rand(1),
        torch.tensor([0]),
    )
    assert not crossing.js_above(laws, math.log(2)).item()
    assert crossing.js_above(laws, 0.69).item()


def test_the_other_rules_read_what_they_say():
    p = torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.05, 0.05]]).log()
    q = torch.tensor([[0.01, 0.5, 0.49], [0.8, 0.1, 0.1]]).log()
    laws = Laws(
        p,
        q,
        torch.tensor([0.2, 0.01]),
        torch.tensor([1.0, 0.4]),
        torch.tensor([0.7, 0.6]),
        torch.tensor([0, 0]),
        torch.tensor([1, 0]),
        torch.tensor([0.1, 0.9]),
        torch.tensor([0, 0]),
    )
    assert crossing.less_likely(laws, -3.0).tolist() == [True, False]
    assert crossing.entropy_above(laws, 0.5).tolist() == [True, False]
    assert crossing.entropy_above(laws, 0.5, of_primary=False).tolist() == [True, True]
    assert crossing.at_random(laws, 0.5).tolist() == [True, False]


def test_a_budget_stops_a_rule_that_would_go_on():
    none, spent = torch.tensor([0, 0]), torch.tensor([1, 3])
    same = [torch.tensor([0.2, 0.2])] * 3
    always = partial(crossing.js_above, epsilon=0.1)
    for switched, expected in ((none, [True, True]), (spent, [True, False])):
        laws = Laws(torch.zeros(2, 3), torch.zeros(2, 3), *same, none, none, torch.rand(2), switched)
        assert crossing.within_budget(laws, always, 2).tolist() == expected
