"""Dataset distillation by distribution matching, with the two plug-in terms of IID (Deng et al., CVPR 2024)."""

__version__ = "0.1.0"
