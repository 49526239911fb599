"""DINOv2 and CLIP as small networks of the published widths."""

from pathlib import Path

import pytest
import torch

from solverbench.benchmark.extractors.base import PublishedExtractor
from solverbench.benchmark.extractors.transformers_models import CLIP, DINOv2
from solverbench.errors import SolverBenchError
from tests.benchmark.extractors.waves import pictures

transformers = pytest.importorskip("transformers", reason="of the extra metrics")


@pytest.fixture(scope="session")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    shape = {"hidden_size": 1024, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    made = transformers.Dinov2Model(transformers.Dinov2Config(**shape, mlp_ratio=1, image_size=224))
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "projection_dim": 768, "image_size": 336, "patch_size": 14}
    torch.manual_seed(0)
    made = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**shape))
    made.save_pretrained(folder)
    return folder


def test_dinov2_s_class_token_of_an_image_at_its_own_size(dino: Path) -> None:
    """No resize is left then, so the library's own preparation gives the same numbers."""
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    image = torch.randint(0, 256, (1, 3, 224, 224), generator=torch.Generator().manual_seed(0))
    found = DINOv2(weights=str(dino), device="cpu", batch=1).extract(image.to(torch.uint8))
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    model = transformers.Dinov2Model.from_pretrained(dino).eval()
    with torch.no_grad():
        expected = model(pixel_values=(image / 255 - mean) / std).pooler_output
    torch.testing.assert_close(found["embedding"], expected, rtol=1e-4, atol=1e-5)


def test_clip_s_embedding_of_an_image_at_its_own_size(clip: Path) -> None:
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    image = torch.randint(0, 256, (1, 3, 336, 336), generator=torch.Generator().manual_seed(0))
    found = CLIP(weights=str(clip), device="cpu", batch=1).extract(image.to(torch.uint8))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(clip).eval()
    with torch.no_grad():
        expected = model(pixel_values=(image / 255 - mean) / std).image_embeds
    torch.testing.assert_close(found["embedding"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "folder", "dim"), [(DINOv2, "dino", 1024), (CLIP, "clip", 768)])
def test_images_of_any_size_are_read(
    kind: type[PublishedExtractor], folder: str, dim: int, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(folder)
    extractor = kind(weights=str(path), device="cpu", batch=2)
    found = extractor.extract(pictures())["embedding"]
    assert found.shape == (2, dim) == (2, extractor.traits.dim)
    assert found.isfinite().all()
    assert len(extractor.sha256) == 64


def test_a_folder_of_something_else_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SolverBenchError, match="is no folder of Dinov2Model") as caught:
        DINOv2(weights=str(tmp_path), device="cpu").extract(pictures())
    assert "\n" not in str(caught.value)
