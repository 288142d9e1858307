"""Padding of images for networks with three pooling layers, which need sides that are multiples of 8."""

from torch import Tensor

__all__ = ["padded"]


def padded(images: Tensor, side: int) -> Tensor:
    """Pads square images on all sides by repeating their outermost pixels.

    Repetition continues any background, black or white, whereas a fixed colour would draw a frame.

    Args:
        images: [N, K, H, H], any type.
        side: S, pixels per side, at least H; if the difference is odd, the right and lower borders are wider.

    Returns:
        [N, K, S, S]; `images` itself if S is H.
    """
    size = images.shape[-1]
    if side == size:
        return images
    begin = (side - size) // 2
    end, larger = begin + size, images.new_empty(*images.shape[:-2], side, side)
    # filled in place, so that only the images and the result are in memory
    larger[..., begin:end, begin:end] = images
    larger[..., begin:end, :begin] = images[..., :1]
    larger[..., begin:end, end:] = images[..., -1:]
    larger[..., :begin, :] = larger[..., begin : begin + 1, :]
    larger[..., end:, :] = larger[..., end - 1 : end, :]
    return larger
