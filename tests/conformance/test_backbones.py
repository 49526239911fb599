import pytest

from solverbench import registry
from solverbench.benchmark.conformance import check_backbone, check_metric

FRAMES = ["ve", "vp-linear", "vp-discrete-ldm", "vp-discrete-sd"]


PUBLISHED = {
    n for n in registry.backbones.names() if getattr(registry.backbones.get(n), "needs", ())
}
HALVES = {"digits-low", "digits-high"}
FROM_FILES = {"edm", "ldm", "sd"} | HALVES | PUBLISHED  # tried with small files in tests/backbones


@pytest.mark.parametrize("name", sorted(set(registry.backbones.names()) - FROM_FILES))
def test_every_registered_backbone_conforms(name: str) -> None:
    assert [c for c in check_backbone(name) if not c.passed] == []


def test_the_exact_and_the_smallest_embedded_backbone_are_always_there() -> None:
    assert all(c.passed for name in ("gaussian", "digits") for c in check_backbone(name))


@pytest.mark.parametrize("output", ["x0", "eps", "v"])
@pytest.mark.parametrize("frame", FRAMES)
def test_the_exact_backbone_conforms_in_every_frame_and_output(frame: str, output: str) -> None:
    checks = check_backbone("gaussian", frame=frame, output=output)
    assert [c for c in checks if not c.passed] == []


WITH_WEIGHTS = {"lpips-teacher"}  # reads VGG16; tried with small weights in tests/benchmark/metrics


@pytest.mark.parametrize("name", sorted(set(registry.metrics.names()) - WITH_WEIGHTS))
def test_every_registered_metric_conforms(name: str) -> None:
    assert [c for c in check_metric(name) if not c.passed] == []
