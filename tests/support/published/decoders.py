"""Small models of every decoder family, collected from the modules of cases."""

from tests.support.published.decoders_dense import CASES as DENSE
from tests.support.published.decoders_gemma import CASES as GEMMAS
from tests.support.published.decoders_llama import CASES as LLAMAS
from tests.support.published.decoders_moe import CASES as MIXTURES
from tests.support.published.decoders_newer import CASES as NEWER
from tests.support.published.decoders_oldies import CASES as OLDIES

CASES = [*LLAMAS, *DENSE, *GEMMAS, *MIXTURES, *NEWER, *OLDIES]
