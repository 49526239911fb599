"""Published time schedules, noisiest first: EDM noise levels (sigma / alpha), or times.

Left out: the OSS list for FLUX. Its times belong to a straight-line flow (alpha = 1 - t), a frame
that no noise schedule of the suite has.
"""

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
GITS_SD_DPMPP: Lists = {
    3: (14.6146, 1.5286, 0.4936, 0.0292),
    4: (14.6146, 3.1131, 1.0421, 0.3811, 0.0292),
    5: (14.6146, 4.39, 1.4467, 0.6114, 0.2255, 0.0292),
    6: (14.6146, 4.39, 1.8073, 0.8319, 0.3811, 0.1258, 0.0292),
    7: (14.6146, 4.39, 2.0267, 1.0421, 0.5712, 0.3058, 0.1258, 0.0292),
    8: (14.6146, 5.9489, 2.9183, 1.5286, 0.8811, 0.4936, 0.2667, 0.1258, 0.0292),
    9: (14.6146, 6.4477, 3.1131, 1.7083, 1.0421, 0.6526, 0.4183, 0.2667, 0.1258, 0.0292),
    10: (14.6146, 7.6188, 4.0861, 2.4211, 1.4467, 0.9324, 0.6114, 0.3811, 0.2255, 0.1258, 0.0292),
    11: (
        *(14.6146, 7.0019, 3.8092, 2.2797, 1.5286, 1.0421),
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
AYS_SVD: Lists = {
    10: (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
AYS_DEEPFLOYD_IF: Lists = {
    10: (160.41, 8.081, 3.315, 1.885, 1.207, 0.785, 0.553, 0.293, 0.186, 0.03, 0.006),
}
DMN_EDM: Lists = {  # pixel weights, from uniform log-SNR
    3: (80.0, 1.0727, 0.2369, 0.002),
    4: (80.0, 2.4605, 0.6803, 0.0917, 0.002),
    5: (80.0, 3.0628, 1.1135, 0.3737, 0.0723, 0.002),
    6: (80.0, 4.4559, 1.3025, 0.6462, 0.2176, 0.052, 0.002),
    7: (80.0, 6.1111, 2.0203, 0.9809, 0.3147, 0.1123, 0.0347, 0.002),
    8: (80.0, 23.049, 1.7535, 0.5092, 0.2167, 0.0879, 0.0421, 0.0172, 0.002),
    10: (80.0, 36.9994, 5.8211, 2.1223, 0.9765, 0.3346, 0.1204, 0.0445, 0.0198, 0.0078, 0.002),
}
DMN_LDM: Lists = {  # times; latent weights, from uniform time
    4: (1.0, 0.6789, 0.4639, 0.1565, 0.001),
    5: (1.0, 0.6987, 0.5318, 0.3437, 0.1267, 0.001),
    6: (1.0, 0.7451, 0.5734, 0.4573, 0.2844, 0.0964, 0.001),
    7: (1.0, 0.8099, 0.6747, 0.5956, 0.4258, 0.2419, 0.0719, 0.001),
}
DMN_SD: Lists = {  # times; latent weights, from uniform time
    4: (1.0, 0.5774, 0.3143, 0.0994, 0.001),
    5: (1.0, 0.6015, 0.3762, 0.2082, 0.0797, 0.001),
    6: (1.0, 0.6666, 0.44, 0.3131, 0.1803, 0.0631, 0.001),
    7: (1.0, 0.7458, 0.5534, 0.4717, 0.2962, 0.1542, 0.0454, 0.001),
}

# name: (lists by number of steps, whether other lengths are interpolated, source)
STORED_SIGMAS: dict[str, tuple[Lists, bool, str]] = {
    "gits-sd": (GITS_SD, False, "Chen et al. (2024), GITS, Stable Diffusion with iPNDM"),
    "gits-cifar10": (GITS_CIFAR10, False, "Chen et al. (2024), GITS, CIFAR10 with iPNDM"),
    "gits-sd-dpmpp": (
        *(GITS_SD_DPMPP, False),
        "Chen et al. (2024), GITS, Stable Diffusion with DPM-Solver++",
    ),
    "ays-sd15": (AYS_SD15, True, "Sabour et al. (2024), Align Your Steps, Stable Diffusion 1.5"),
    "ays-sdxl": (AYS_SDXL, True, "Sabour et al. (2024), Align Your Steps, SDXL"),
    "ays-svd": (AYS_SVD, True, "Sabour et al. (2024), Align Your Steps, Stable Video Diffusion"),
    "ays-deepfloyd-if": (
        *(AYS_DEEPFLOYD_IF, True),
        "Sabour et al. (2024), Align Your Steps, DeepFloyd-IF stage 1",
    ),
    "dmn-edm": (DMN_EDM, False, "Xue et al. (2024), DMN, noise levels 80 to 0.002"),
}

# name: (lists by number of steps, the betas of the discrete schedule their times belong to, source)
STORED_TIMES: dict[str, tuple[Lists, tuple[float, float], str]] = {
    "dmn-ldm": (DMN_LDM, (0.0015, 0.0195), "Xue et al. (2024), DMN, latent models"),
    "dmn-sd": (DMN_SD, (0.00085, 0.012), "Xue et al. (2024), DMN, Stable Diffusion"),
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


def snapped(t: Tensor, start: float, end: float, tolerance: float = 0.05) -> Tensor:
    """Printed times with exact ends.

    Args:
        t: times, (N + 1,), decreasing.
        start: what the first becomes.
        end: what the last becomes, where it differs by less than ``tolerance`` of it.
        tolerance: relative; lists are printed with few digits at their small end.

    Returns:
        (N + 1,), a new tensor.
    """
    t = t.clone()
    t[0] = start
    if abs(float(t[-1]) - end) <= tolerance * end:
        t[-1] = end
    return t
