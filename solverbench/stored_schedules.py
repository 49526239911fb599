"""Published time schedules, as EDM noise levels (sigma / alpha), noisiest first."""

import torch
from torch import Tensor

Lists = dict[int, tuple[float, ...]]

GITS_SD: Lists = {  # iPNDM, by number of steps
    3: (14.6146, 1.7083, 0.532, 0.0292),
    4: (14.6146, 3.1131, 1.0421, 0.3811, 0.0292),
    5: (14.6146, 4.39, 1.5286, 0.6526, 0.2667, 0.0292),
    6: (14.6146, 4.7242, 1.9132, 0.9324, 0.4557, 0.1801, 0.0292),
    7: (14.6146, 6.4477, 2.2797, 1.1629, 0.6114, 0.3058, 0.1258, 0.0292),
    8: (14.6146, 6.4477, 2.7391, 1.4467, 0.8319, 0.4936, 0.2667, 0.1258, 0.0292),
    9: (14.6146, 6.4477, 3.3251, 1.9132, 1.1629, 0.7391, 0.4557, 0.2667, 0.1258, 0.0292),
    10: (14.6146, 5.9489, 3.3251, 2.0267, 1.2969, 0.8319, 0.5712, 0.3811, 0.2255, 0.1258, 0.0292),
    11: (
        *(14.6146, 6.4477, 3.8092, 2.2797, 1.5286, 1.0421),
        *(0.7391, 0.4936, 0.3437, 0.2255, 0.1258, 0.0292),
    ),
}
GITS_CIFAR10: Lists = {6: (80.0, 10.9836, 3.8811, 1.584, 0.5666, 0.1698, 0.002)}
AYS_SD15: Lists = {
    10: (
        *(14.6146412293, 6.4745760956, 3.8636745985, 2.694615152, 1.8841921177, 1.3943805092),
        *(0.9642583904, 0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582),
    )
}
AYS_SDXL: Lists = {
    10: (
        *(14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141),
        *(0.5550693289, 0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582),
    )
}

# name: (lists by number of steps, whether other lengths are interpolated, source)
STORED_SIGMAS: dict[str, tuple[Lists, bool, str]] = {
    "gits-sd": (GITS_SD, False, "Chen et al. (2024), GITS, Stable Diffusion with iPNDM"),
    "gits-cifar10": (GITS_CIFAR10, False, "Chen et al. (2024), GITS, CIFAR10 with iPNDM"),
    "ays-sd15": (AYS_SD15, True, "Sabour et al. (2024), Align Your Steps, Stable Diffusion 1.5"),
    "ays-sdxl": (AYS_SDXL, True, "Sabour et al. (2024), Align Your Steps, SDXL"),
}


def stored(name: str, num_steps: int) -> Tensor:
    """A stored list of noise levels.

    Args:
        name: key of ``STORED_SIGMAS``.
        num_steps: N; AYS lists are interpolated to it, linearly in log sigma over i / N.

    Returns:
        (N + 1,), decreasing, float64.

    Raises:
        ValueError: where no list of this length exists and none may be interpolated.

    Source: the papers named in ``STORED_SIGMAS``; interpolation as the AYS authors recommend.
    """
    lists, interpolated, _ = STORED_SIGMAS[name]
    if num_steps in lists:
        return torch.tensor(lists[num_steps], dtype=torch.float64)
    if not interpolated:
        lengths = ", ".join(map(str, lists))
        raise ValueError(f"schedule {name} has no list of {num_steps} steps; it has {lengths}")
    (length, values), *_ = lists.items()
    logs = torch.tensor(values, dtype=torch.float64).log()
    place = torch.arange(num_steps + 1, dtype=torch.float64) * length / num_steps
    left = place.floor().long().clamp(max=length - 1)
    return torch.exp(logs[left] + (place - left) * (logs[left + 1] - logs[left]))
