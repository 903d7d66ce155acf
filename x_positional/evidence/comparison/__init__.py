"""Position schemes trained side by side on the same data and budget, and compared with intervals over seeds."""
