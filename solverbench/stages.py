"""Names for the parts of a training step, so that a profile can say where time and memory go."""

from torch.profiler import record_function

PREFIX = "solverbench: "
STAGES = (
    "network forward",
    "network backward",
    "solver algebra",
    "loss",
    "discriminator",
    "optimiser",
    "waiting",
)


def stage(name: str) -> record_function:
    """A block whose time belongs to one of ``STAGES``, less that of blocks inside it.

    Costs some microseconds where nobody profiles.
    """
    assert name in STAGES, name
    return record_function(PREFIX + name)
