"""Small models of every family of decoders; each module of cases holds a few families."""

from decoders_dense import CASES as DENSE
from decoders_gemma import CASES as GEMMAS
from decoders_llama import CASES as LLAMAS
from decoders_moe import CASES as MIXTURES
from decoders_oldies import CASES as OLDIES

CASES = [*LLAMAS, *DENSE, *GEMMAS, *MIXTURES, *OLDIES]
