"""Small models of every family of decoders; each module of cases holds a few families."""

from decoders_llama import CASES as LLAMAS

CASES = [*LLAMAS]
