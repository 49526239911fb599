"""VGG16's last hidden layer: the features of precision and recall (T4096 of Naeem et al.)."""

from torch import Tensor, nn
from torch.nn import functional

from solverbench.benchmark.extractors.base import (
    Network,
    PublishedExtractor,
    fill,
    read_state,
)
from solverbench.benchmark.extractors.resizing import normalised, tf1_bilinear
from solverbench.benchmark.lpips import Trunk
from solverbench.errors import SolverBenchError
from solverbench.images import Traits

SIDE, DIM = 224, 4096
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class VGG(nn.Module):
    """Images in 0 .. 255 of any size to fc2 after its ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.fc1, self.fc2 = nn.Linear(512 * 7 * 7, DIM), nn.Linear(DIM, DIM)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W), float32, to (B, 4096)."""
        x = normalised(tf1_bilinear(images, SIDE, SIDE) / 255, MEAN, STD)
        x = functional.max_pool2d(self.trunk(x)[-1], 2).flatten(1)
        return functional.relu(self.fc2(functional.relu(self.fc1(x))))


class VGG16FC2(PublishedExtractor):
    """``fc2_relu`` of torchvision's VGG16."""

    name = "vgg16-fc2"
    weights_file = "vgg16"

    @property
    def traits(self) -> Traits:
        """The second hidden layer of the classifier, after its ReLU."""
        return Traits(DIM, 3, "TF1 bilinear to 224", self.batch, licence="see upstream")

    def read(self) -> Network:
        """Our own layers with torchvision's weights."""
        state = read_state(self.path)
        theirs = sorted(name for name in state if name.startswith("features."))
        theirs.sort(key=lambda name: int(name.split(".")[1]))
        theirs.sort(key=lambda name: name.endswith("bias"))  # all weights, then all biases
        if len(theirs) != 26:  # weights and biases of 13 convolutions
            raise SolverBenchError(f"{self.path} belongs to another network than VGG16")
        network = VGG()
        ours = sorted(network.trunk.state_dict(), key=lambda name: name.endswith("bias"))
        found = {f"trunk.{own}": state[name] for own, name in zip(ours, theirs, strict=True)}
        for own, name in (("fc1", "classifier.0"), ("fc2", "classifier.3")):
            for part in ("weight", "bias"):
                if f"{name}.{part}" in state:
                    found[f"{own}.{part}"] = state[f"{name}.{part}"]
        fill(network, found, self.path)
        return network.to(self.device).eval().requires_grad_(False)
