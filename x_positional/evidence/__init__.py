"""What is measured: speed beside peers, loss past the trained length, schemes side by side, and reports of all of it."""
