"""The commands that measure: eval, compare, extend, bench, lm-eval."""
