"""Images laid in the middle of larger ones: networks with three poolings want sides that are multiples of 8."""

from torch import Tensor

__all__ = ["padded"]


def padded(images: Tensor, side: int) -> Tensor:
    """Square images in the middle of larger ones, their outermost pixels repeated to the edge.

    Repeating continues whatever the background is, black or white, where a colour of our own would draw a frame.

    Args:
        images: [N, K, H, H], any type.
        side: S, pixels a side, at least H; where the rest is odd, the right and lower border is the wider one.

    Returns:
        [N, K, S, S]; the images themselves where S is H.
    """
    size = images.shape[-1]
    if side == size:
        return images
    begin = (side - size) // 2
    end, larger = begin + size, images.new_empty(*images.shape[:-2], side, side)
    # part by part into the place, so that there is nothing in memory but these and those
    larger[..., begin:end, begin:end] = images
    larger[..., begin:end, :begin] = images[..., :1]
    larger[..., begin:end, end:] = images[..., -1:]
    larger[..., :begin, :] = larger[..., begin : begin + 1, :]
    larger[..., end:, :] = larger[..., end - 1 : end, :]
    return larger
