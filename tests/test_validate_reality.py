"""The validator against reality: what it calls fine builds, runs, trains and decodes; what it refuses fails or is wrong."""

from hypothesis import HealthCheck, event, given, settings
from validate_oracles import faults
from validate_strategies import MODELS, USES

from x_positional import check
from x_positional.config import ModelConfig
from x_positional.validate import Use


@settings(max_examples=250, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(MODELS, USES)
def test_the_verdict_is_true(model: dict, use: dict) -> None:
    config = ModelConfig.model_validate(model)
    report = check(config, **use)
    found = faults(config, Use(**use))
    event("fine" if report.ok else f"{len(report.errors)} errors")
    assert report.ok == (not found), f"{report}\n\nin truth: {found}"
