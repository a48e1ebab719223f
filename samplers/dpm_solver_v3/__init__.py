"""DPM-Solver-v3, arXiv 2310.13268: statistics, their integrals, a plan of coefficients, and the loop that runs it."""

from .bases import basis_for
from .coefficients import Coefficients, step_coefficients
from .plan import Options, Plan, make_plan
from .solver import DPMSolverV3
from .statistics import Statistics

__all__ = [
    "Coefficients",
    "DPMSolverV3",
    "Options",
    "Plan",
    "Statistics",
    "basis_for",
    "make_plan",
    "step_coefficients",
]
