"""Small models of every family of decoders; each module of cases holds a few families."""

from decoders_llama import CASES as LLAMAS
from decoders_oldies import CASES as OLDIES

CASES = [*LLAMAS, *OLDIES]
