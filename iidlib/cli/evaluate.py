"""``iid evaluate``: trains networks from scratch on a set and tests them on real images."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iidlib.cli.options import Baseline, Changes, DataRoot, Device, Results, given_changes
from iidlib.cli.scores import chosen_beside, scored, show_scores
from iidlib.cli.session import check_names, given_command, keeping, load
from iidlib.config import differing, preset
from iidlib.errors import InputError, suggest

if TYPE_CHECKING:
    from iidlib.runs import RunFolder


__all__ = ["evaluate"]


def evaluate(
    ctx: typer.Context,
    path: Annotated[
        str,
        typer.Argument(help="A run's folder or set; or random, random-mosaic, herding, k-center or whole."),
    ],
    dataset: Annotated[str | None, typer.Option("--dataset", help="Else the one the set was made for.")] = None,
    networks: Annotated[str | None, typer.Option("--networks", help="Such as convnet3,alexnet.")] = None,
    num_eval: Annotated[int | None, typer.Option("--num-eval", help="Networks of each architecture.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Passes over the set; 1001 in the paper.")] = None,
    scale: Annotated[str | None, typer.Option("--scale", help="Protocol to start from; else the set's own.")] = None,
    protocol: Annotated[
        str, typer.Option("--protocol", help="dm (DC, DM, IDM, IID) or idc (IDC, DREAM, DANCE: CutMix, 1500 passes).")
    ] = "dm",
    ipc: Annotated[int | None, typer.Option("--ipc", help="Images a class, for chosen images; else 10.")] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of the networks, and of the choice of random images; else the set's.")
    ] = None,
    device: Device = "auto",
    data_root: DataRoot = None,
    changes: Changes = None,
    baseline: Baseline = True,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file for the scores.")] = None,
    results: Results = None,
) -> None:
    """Train networks from scratch on a set and test them on the real test images."""
    import dataclasses

    import pandas as pd

    from iidlib.evaluation import choose, made_by, origin_of, random_real
    from iidlib.evaluation.coresets import CHOICES
    from iidlib.experiments import SetOrigin, append_results, check_results, check_writable, protocol_text
    from iidlib.features import trained_pool
    from iidlib.files import atomic_write
    from iidlib.presets import PROTOCOLS
    from iidlib.presets import protocol as protocol_changes
    from iidlib.runs import RunFolder
    from iidlib.synthetic import SyntheticSet

    if out is not None:
        check_writable(out)
        if out.exists():
            raise InputError(f"{out} exists already; nothing was overwritten: give another --out")
    if results is not None:
        check_results(results)
    synthetic = None if path in ("random", "random-mosaic", "whole", *CHOICES) else SyntheticSet.load(path)
    origin = synthetic.provenance if synthetic else {}
    if synthetic and ipc not in (None, synthetic.ipc):
        raise InputError(f"--ipc goes with chosen images; the set in {path} has {synthetic.ipc} images a class")
    name = dataset or (synthetic.spec.name if synthetic else "cifar10-mini")
    label = path if synthetic is None else origin.get("method", "unknown")
    try:
        iterations, own_seed = int(origin.get("iterations", 0)), int(origin.get("seed", seed or 0))
    except ValueError:
        raise InputError(
            f"{path} is damaged (its seed or iterations are not numbers); distil or copy it again"
        ) from None
    networks_seed = own_seed if seed is None else seed

    if protocol not in PROTOCOLS:
        raise InputError(f"unknown protocol {protocol!r}{suggest(protocol, PROTOCOLS)}")
    given = {"eval.networks": networks, "eval.num_eval": num_eval, "eval.epochs": epochs}
    own = given_changes(changes)
    chosen = {key: value for key, value in given.items() if value is not None} | own
    made_at = origin.get("scale", scale or "tour")
    size = synthetic.ipc if synthetic else 10 if ipc is None else ipc
    loaded = load(name, data_root, device)
    family = {} if protocol == "dm" else protocol_changes(protocol, loaded.spec.augmentation, scale or made_at)
    config = preset(label, name, size, scale or made_at, {"seed": own_seed} | family | chosen)
    if path == "whole" and "eval.epochs" not in chosen:
        config = dataclasses.replace(config, eval=config.eval.for_whole_set())
    check_names(config)
    kept = RunFolder(path) if (Path(path) / "config.yaml").is_file() else None
    as_planned = kept is not None and kept.config().eval == config.eval
    if path == "whole":
        size = int(loaded.train.counts.max())
    # a set keeps the scale at which it was distilled; how it is evaluated, its protocol says
    config = dataclasses.replace(config, scale=made_at, ipc=size)
    images = synthetic or loaded.train
    stamp = made_by(loaded.train.device, given_command(ctx))  # now, as a checkout may change meanwhile
    made = _settings_of(origin, kept) | own
    if synthetic and name != synthetic.spec.name:
        made["made_from"] = re.sub(r"\s+", "_", synthetic.spec.name)  # not what the row's data set would say
    facts = SetOrigin(label, made_at, own_seed, iterations, getattr(images, "factor", 1), made)
    with keeping():
        if path in CHOICES:
            # features of a network trained on the whole set, another one for each seed
            one = dataclasses.replace(config.pool, count=1, seed=config.pool.seed + own_seed)
            pool = trained_pool(loaded, one, compute=config.compute)
            images = choose(path, loaded.train, size, pool.networks[0])
            facts = dataclasses.replace(facts, pool_accuracies=pool.accuracies)
        elif synthetic is None and path != "whole":
            images = random_real(loaded.train, size, own_seed, config.syn.factor)
            label = images.provenance["method"]
            facts = dataclasses.replace(facts, method=label, factor=images.factor)
        scores = scored(images, loaded, config, origin=facts, seed=networks_seed, made_by=stamp)
        if baseline and synthetic and label not in ("random", "random-mosaic"):
            beside = []
            for one_set in chosen_beside(loaded.train, size, own_seed, synthetic.factor):
                own_facts = dataclasses.replace(origin_of(one_set), scale=made_at, settings=own)
                beside.append(scored(one_set, loaded, config, origin=own_facts, seed=networks_seed, made_by=stamp))
            scores = pd.concat([*beside, scores], ignore_index=True)
        judged_by = protocol_text(config.eval, label, getattr(images, "factor", 1))
        show_scores(scores, f"tested on {name}", "mean ± std over networks", judged_by)
        if kept is not None and as_planned and not (kept.path / "scores.json").exists():
            kept.write_scores(scores)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(out, scores.to_json(orient="records", indent=2) + "\n")
        if results is not None:
            append_results(results, scores)


def _settings_of(origin: Mapping[str, str], kept: "RunFolder | None") -> dict[str, str]:
    """What a set was made with beside its scale's settings: as it says, or as its run's folder says."""
    if kept is not None:
        return differing(kept.config())
    pairs = (pair.partition("=") for pair in origin.get("settings", "").split())
    return {key: value for key, _, value in pairs}
