"""The validator against reality: what it calls fine builds, runs, trains and decodes; what it refuses fails or is wrong."""

import zlib

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.support.draws import draws
from tests.support.validate_claims import false_claims
from tests.support.validate_oracles import faults
from tests.support.validate_strategies import MODELS, SCHEMES, USES, models_with, with_scheme
from x_positional import check
from x_positional.config.models import ModelConfig
from x_positional.config.validate import Use
from x_positional.schemes.registry import REGISTRY

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example, HealthCheck.filter_too_much]
STRATEGIES = {
    "any": MODELS,
    "default": models_with(st.none()),
    **{kind: models_with(with_scheme(kind)) for kind in SCHEMES},
}


@pytest.mark.parametrize("position", STRATEGIES)
def test_the_verdict_is_true(position: str) -> None:
    @seed(zlib.crc32(position.encode()))  # the same cases each time, and others for each scheme
    @settings(max_examples=draws(8, 25), deadline=None, database=None, suppress_health_check=SLOW)
    @given(STRATEGIES[position], USES)
    def judge(model: dict, use: dict) -> None:
        config = ModelConfig.model_validate(model)
        report = check(config, **use)
        found = faults(config, Use(**use))
        assert report.ok == (not found), f"{report}\n\nin truth: {found}"
        if report.ok:
            assert not (false := false_claims(config, report)), f"{report}\n\nfalse claims: {false}"

    judge()


def test_every_scheme_is_drawn() -> None:
    mine = {kind: config for kind, config in REGISTRY.items() if config.__module__.startswith("x_positional.schemes")}
    assert set(SCHEMES) == {kind for kind, config in mine.items() if config.by_name}
