"""The summary of a session on a rented GPU, for `.ci/gpu.py`: what was measured, what failed, what is next."""

from collections.abc import Iterator
from typing import Any

from gpu_files import tail
from gpu_session import Session

LINES = 20  # of a log in the summary
CELL = ["dataset", "ipc", "method", "network", "settings", "seed"]


def measured_lines(session: Session) -> Iterator[str]:
    """Table of the cells that this call has measured, and what comes next."""
    from iidlib.experiments import all_rows, jobs
    from iidlib.experiments.costs import costs, model_of

    rows = all_rows(session.out)
    new = rows[rows["date"] >= session.begun_at] if len(rows) else rows
    if len(new):
        yield "| cell | seed | accuracy | networks | seconds per iteration | device |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for (dataset, ipc, *what, seed), own in new.groupby(CELL, sort=False):
            last = own.iloc[-1]
            speed = f"{float(last['seconds_per_iteration']):.4g}" if last["seconds_per_iteration"] else ""
            values = f"{own['accuracy'].mean():.2f} ± {own['accuracy'].std(ddof=0):.2f}"
            cell = f"{dataset}/ipc{ipc:.0f}/{' '.join(filter(None, what))}"
            device = last["device"] + (", not recorded" if last.get("recorded") == "no" else "")
            yield f"| {cell} | {seed:.0f} | {values} | {len(own)} | {speed} | {device} |"
    else:
        yield "No rows of this call."
    yield f"\n{len(rows) - len(new)} rows are of earlier calls or came with the checkout."
    given: dict[str, Any] = {"scale": session.scale, "seeds": session.seeds, "only": session.prefix}
    todo = jobs(session.experiment, **given, folder=session.out, runs=session.runs / "cells")
    card = str(session.machine.get("gpu") or "cpu")
    model = model_of(card)
    yield f"\n## Next: {len(todo)} runs are missing\n"
    known = costs([job.cell for job in todo], scale=session.scale, device=model, rows=rows) if model else {}
    for job in todo[:8]:
        cost = known.get(job.cell)
        source = "measured on such a device" if cost and cost.measured else f"predicted for {model}"
        minutes = f": {cost.seconds / 60:.1f} minutes, {source}" if cost else ""
        begun = ", and less, since it was begun" if job.begun else ""
        yield f"- {job.cell.name}, seed {job.seed}{minutes}{begun}"


def benchmark_lines(session: Session) -> Iterator[str]:
    """Table of the benchmark's rows, the newest of each kind."""
    from iidlib.experiments.tables import read_results

    rows = read_results(session.out / "bench.csv", needed=("what", "method", "seconds"))
    if rows.empty:
        return
    yield from ("", "| benchmark | milliseconds | of the loop over classes | device |", "| --- | --- | --- | --- |")
    for row in rows.drop_duplicates(["what", "method"], keep="last").to_dict("records"):
        times = [f"{1e3 * float(row[name]):.3g}" if row.get(name) else "" for name in ("seconds", "baseline_seconds")]
        if not row["seconds"]:  # a row of a failure
            times[0] = f"not timed: {row.get('error') or 'no reason given'}".replace("|", "/")[:200]
        yield f"| {row['what']} {row['method']} | {' | '.join(times)} | {row['device']} |"


def images(session: Session) -> str:
    """The images that the cells are distilled from, in plain words."""
    if not session.embedded:
        return "CIFAR-10 and CIFAR-100, whole" if session.has("cifar100") else "CIFAR-10, whole; no CIFAR-100 here"
    why = f"scale {session.scale} is made for them"
    if session.scale in ("paper", "laptop"):
        why = "the whole CIFAR-10 was not found (--data-root or IID_DATA names its folder)"
    return (
        f"the 4,000 embedded images of CIFAR-10, because {why}. Rows name them as cifar10-mini; their accuracies do "
        "not compare with published ones"
    )


def summary(session: Session) -> str:
    """What was measured, what failed, and what is next, as Markdown."""
    machine, left = session.machine, max(session.left, 0)
    build = machine["build"] if isinstance(machine.get("build"), dict) else {}
    card, asked = machine.get("gpu") or machine.get("platform", "unknown"), machine.get("card")
    driver = asked["driver_version"] if isinstance(asked, dict) else "unknown"
    lines = [
        "# Session on a rented GPU", "",
        f"- {session.state}; begun {session.begun_at}, {left / 60:.1f} of {session.seconds / 60:.1f} minutes left",
        f"- machine: {card}, torch {machine.get('torch', 'unknown')}, CUDA {build.get('cuda')}, "
        f"driver {driver}, commit {machine.get('commit')}",
        f"- images: {images(session)}",
        f"- scale {session.scale}, {session.seeds} seeds; runs and caches in {session.runs}", "",
        "| part | outcome | seconds | last line |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    if (kernels := machine.get("compiled kernels", True)) is not True:
        lines.insert(4, f"- compiled kernels are not in use ({kernels}): a step is slower")
    if old := machine.get("too old"):
        lines.insert(4, f"- packages that are missing or older than `pyproject.toml` asks for: {old}")
    for name, one in session.ended.items():
        lines.append(f"| {name} | {one.outcome} | {one.seconds:.0f} | {one.note.replace('|', '/')} |")
    lines += ["", "## Measured", ""]
    for part in (measured_lines, benchmark_lines):
        try:
            lines += list(part(session))
        except Exception as error:  # the summary must be written, whatever is broken
            lines.append(f"The rows cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
    cells = tail(session.log("cells"), 5000) if "cells" in session.ended and session.ended["cells"].seconds else []
    skipped = [line for line in cells if line.startswith("failed with status")]
    failed = [name for name, one in session.ended.items() if one.outcome.startswith(("failed", "stopped"))]
    if failed or skipped or session.remarks or session.left_out:
        lines += ["", "## Failed or cut", ""]
        lines += [f"- {line}" for line in [*(f"{name} {session.ended[name].outcome}" for name in failed), *skipped]]
        lines += [f"- {remark}" for remark in [*session.remarks, *session.left_out]]
    for name in failed:
        lines += ["", f"The end of {name}:", "", "```", *(line[:300] for line in tail(session.log(name), LINES)), "```"]
    return "\n".join(lines) + "\n"
