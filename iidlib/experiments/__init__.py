"""Results as data: measured rows, published values, the cells of the paper's tables; does not need torch."""

from iidlib.experiments.cells import EXPERIMENTS, Cell, Experiment, within
from iidlib.experiments.effects import costs_on_one_device, distillation_costs, gains_of_parts, headline, search_results
from iidlib.experiments.grids import find
from iidlib.experiments.many_gpus import modelled
from iidlib.experiments.measurements import all_rows, coverage, mean_of, measured, table
from iidlib.experiments.paired import paired_gains, paired_interval
from iidlib.experiments.parameters import check_parameters, take_parameters
from iidlib.experiments.published import Published, published_value
from iidlib.experiments.reproduce import Job, jobs, run_jobs
from iidlib.experiments.results import MadeBy, SetOrigin, protocol_text, result_rows
from iidlib.experiments.sweep import Sweep, load_grid
from iidlib.experiments.tables import append_results, check_results, check_writable, read_results, results_dir, rows_of

__all__ = ["EXPERIMENTS", "Cell", "Experiment", "Job", "MadeBy", "Published", "SetOrigin", "Sweep", "all_rows",
    "append_results", "check_parameters", "check_results", "check_writable", "costs_on_one_device", "coverage",
    "distillation_costs", "find", "gains_of_parts", "headline", "jobs", "load_grid", "mean_of", "measured",
    "modelled", "paired_gains", "paired_interval", "protocol_text", "published_value", "read_results", "result_rows",
    "results_dir", "rows_of", "run_jobs", "search_results", "table", "take_parameters", "within"]  # fmt: skip
