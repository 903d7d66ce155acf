"""Small models of every family of decoders; each module of cases holds a few families."""

from decoders_llama import CASES as LLAMAS
from decoders_moe import CASES as MIXTURES

CASES = [*LLAMAS, *MIXTURES]
