import torch

from g2l_plugin.distillation.agreement import Agreed, Agreement


def two_devices(values):
    """The mean with a device whose loss is 4 and that wishes nothing."""
    return (values + torch.tensor([4.0, 0.0, 0.0])) / 2


def test_a_step_is_known_one_step_later():
    agreement = Agreement()
    agreement.exchange(0, torch.tensor(2.0), True, False, two_devices)
    assert agreement.known is None
    assert agreement.peek() == Agreed(0, 3.0, stop=True)
    agreement.exchange(1, torch.tensor(1.0), False, True, two_devices)
    assert agreement.known == Agreed(0, 3.0, stop=True)
    agreement.flush()
    assert agreement.known == Agreed(1, 2.5, save=True)
    assert agreement.peek() is None


def test_what_is_pending_outlives_the_process_but_not_a_wish():
    agreement, resumed = Agreement(), Agreement()
    resumed.load_state_dict(agreement.state_dict())
    assert resumed.peek() is None
    agreement.exchange(7, torch.tensor(2.0), True, True, lambda values: values)
    resumed.load_state_dict(agreement.state_dict())
    resumed.exchange(8, torch.tensor(1.0), False, False, lambda values: values)
    assert resumed.known == Agreed(7, 2.0)
