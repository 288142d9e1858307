"""The interface of all networks: a trunk that ends in a feature map, a head, and a linear classifier."""

from torch import Tensor, nn

__all__ = ["Network"]


class Network(nn.Module):
    """A trunk, a head and a classifier for square images of one size.

    Attributes:
        name: as in ``NETWORKS``.
        image_size: side H of the images.
        channels: channels of the images, K_in.
        trunk: images -> feature map [B, K, h, w].
        head: feature map -> features [B, D].
        classifier: features -> logits [B, num_classes], the last linear layer.
    """

    def __init__(
        self, trunk: nn.Module, head: nn.Module, classifier: nn.Linear, *, name: str, image_size: int, channels: int
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.classifier = classifier
        self.name = name
        self.image_size = image_size
        self.channels = channels

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return self.classifier.out_features

    def feature_map(self, images: Tensor) -> Tensor:
        """Maps images [B, K_in, H, H] to the trunk's last feature map [B, K, h, w] (after its last pooling).

        Raises:
            ValueError: if the images do not have the shape that the network was built for.
        """
        self._check_shape(images)
        return self.trunk(images)

    def _check_shape(self, images: Tensor) -> None:
        if images.shape[1:] != (self.channels, self.image_size, self.image_size):
            raise ValueError(
                f"{self.name} was built for images [B, {self.channels}, {self.image_size}, {self.image_size}], "
                f"got {list(images.shape)}"
            )

    def block_maps(self, images: Tensor, count: int) -> list[Tensor]:
        """Feature maps after the last `count` blocks of a ConvNet, [B, K, h, w] each; the last equals `feature_map`.

        Raises:
            ValueError: if the network is not a ConvNet, it has fewer blocks, or the images have the wrong shape.
        """
        if not self.name.startswith("convnet") or count > len(self.trunk):  # type: ignore[arg-type]
            has = f"has {len(self.trunk)}" if self.name.startswith("convnet") else "is not a ConvNet"  # type: ignore[arg-type]
            raise ValueError(f"the feature maps of {count} blocks were requested, but {self.name} {has}")
        if count == 1:
            return [self.feature_map(images)]
        self._check_shape(images)
        maps = []
        for block in self.trunk.children():
            images = block(images)
            maps.append(images)
        return maps[-count:]

    def embed(self, images: Tensor) -> Tensor:
        """Maps images [B, K_in, H, H] to features [B, D], the input of the classifier."""
        return self.head(self.feature_map(images))

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [B, K_in, H, H] to logits [B, num_classes]."""
        return self.classifier(self.embed(images))
