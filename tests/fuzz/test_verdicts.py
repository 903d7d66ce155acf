"""The verdict against reality for stacks whose layers differ, and with kept first tokens."""

from hypothesis import HealthCheck, given, seed, settings

from tests.support.draws import draws
from tests.support.validate_claims import false_claims
from tests.support.validate_oracles import OF_ONE_KIND, OF_PATTERNS, faults
from tests.support.validate_strategies import MODELS, USES, with_patterns
from x_positional import check
from x_positional.config.models import ModelConfig
from x_positional.config.validate import Use

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example, HealthCheck.filter_too_much]


@seed(1)
@settings(max_examples=draws(10, 1600), deadline=None, database=None, suppress_health_check=SLOW)
@given(with_patterns(MODELS), USES)
def test_the_verdict_is_true(model: dict, use: dict) -> None:
    """What is called fine builds, runs, trains and decodes through a cache; what is refused fails or is wrong."""
    config = ModelConfig.model_validate(model)
    report = check(config, **use)
    found = in_truth(model, Use(**use))
    assert report.ok == (not found), f"{report}\n\nin truth: {found}"
    if report.ok:
        assert not (false := false_claims(config, report)), f"{report}\n\nfalse claims: {false}"


def in_truth(model: dict, use: Use) -> list[str]:
    """What is wrong with the whole model, or with one whose layers are all like an entry of its pattern."""
    config = ModelConfig.model_validate(model)
    if not config.layers.pattern:
        return faults(config, use)
    found = faults(config, use, OF_PATTERNS)
    alone = [] if found else entries_alone(model)
    return found or [fault for entry in alone for fault in faults(entry, use, OF_ONE_KIND)]


def entries_alone(model: dict) -> list[ModelConfig]:
    """For each entry of the pattern, a model whose layers are all like it."""
    layers = model["layers"]
    shared = {name: value for name, value in layers.items() if name not in ("pattern", "window", "chunk", "keep_first")}
    return [
        ModelConfig.model_validate({**model, "layers": {**shared, **entry}}) for entry in layers.get("pattern") or ()
    ]
