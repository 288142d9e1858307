"""The ranks of a command that help the first: each makes the calls of the library that rank 0 announces."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from iidlib.cli.session import load_here
from iidlib.errors import InputError

if TYPE_CHECKING:
    from iidlib.config import ComputeConfig, EvalProtocol, PoolConfig, RunConfig
    from iidlib.data import Dataset
    from iidlib.ranks import Ranks
    from iidlib.synthetic import SyntheticSet

__all__ = ["follow"]


class _Follower:
    """The computations that ranks share, by the name of the task; each does what rank 0 does after its `post`."""

    def __init__(self) -> None:
        self._dataset: Dataset | None = None

    @property
    def dataset(self) -> "Dataset":
        """The dataset of the command."""
        if self._dataset is None:
            raise RuntimeError("no dataset was loaded before")
        return self._dataset

    def load(self, name: str, data_root: Path | None, device: str) -> None:
        """Loads the dataset of the tasks that follow."""
        self._dataset = load_here(name, data_root, device)

    def distill(self, config: "RunConfig", resume: bool) -> None:
        """Takes part in a distillation."""
        from iidlib.distillation import distill

        distill(config, self.dataset, resume=resume)

    def evaluate(
        self,
        images: "SyntheticSet | None",
        protocol: "EvalProtocol",
        seed: int,
        compute: "ComputeConfig",
    ) -> None:
        """Takes part in an evaluation, of all training images if `images` is None."""
        from iidlib.evaluation import evaluated

        given = self.dataset.train if images is None else images
        for _ in evaluated(given, self.dataset, protocol=protocol, seed=seed, compute=compute):
            pass

    def pool(self, config: "PoolConfig", compute: "ComputeConfig") -> None:
        """Takes part in the training of a pool."""
        from iidlib.features import trained_pool

        trained_pool(self.dataset, config, compute=compute)

    def choosing_pool(self, config: "RunConfig") -> None:
        """Takes part in the training of a network that chooses real images."""
        from iidlib.features import choosing_pool

        choosing_pool(self.dataset, config)


def follow(ranks: "Ranks") -> None:
    """Takes part in the computations of rank 0 until it has ended."""
    follower = _Follower()
    while True:
        announced: tuple[str, dict[str, Any]] | None = None
        task, arguments = ranks.first(announced)
        if not task:
            return
        try:
            getattr(follower, task)(**arguments)
        except (InputError, FloatingPointError):  # rank 0 has the same, and says it
            continue
