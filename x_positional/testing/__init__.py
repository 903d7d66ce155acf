"""The public contract of position schemes: `check_scheme(MyScheme)` tests a scheme against what it declares."""

from x_positional.errors import ContractError
from x_positional.testing.expect import CheckFailed
from x_positional.testing.subject import Sizes
from x_positional.testing.suite import CHECKS, CheckResult, ContractReport, check_scheme

__all__ = ["CHECKS", "CheckFailed", "CheckResult", "ContractError", "ContractReport", "Sizes", "check_scheme"]
