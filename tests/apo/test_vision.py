"""When two vision towers count as one."""

import torch

from apo.vision import same_weights


def towers():
    one, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    other.load_state_dict(one.state_dict())
    return one, other


def test_equal_weights_are_the_same_and_others_are_not():
    one, other = towers()
    assert same_weights(one, other)
    with torch.no_grad():
        other.bias[1] += 1e-3
    assert not same_weights(one, other) and not same_weights(one, torch.nn.Linear(3, 2, bias=False))


def test_weights_that_are_elsewhere_are_not_taken_for_equal():
    """ZeRO-3 leaves empty tensors behind, which are equal whatever the weights are."""
    one, other = towers()
    for parameter in (*one.parameters(), *other.parameters()):
        parameter.data = torch.empty(0)
    assert not same_weights(one, other)
