"""The public contract of position schemes: `check_scheme(MyScheme)` proves what a scheme declares, both ways."""

from x_positional.errors import ContractError
from x_positional.testing.judge import Broken
from x_positional.testing.report import ContractReport, Outcome
from x_positional.testing.subject import Sizes
from x_positional.testing.suite import CHECKS, check_scheme

__all__ = ["CHECKS", "Broken", "ContractError", "ContractReport", "Outcome", "Sizes", "check_scheme"]
