"""The leaderboard of docs/evidence.md: every scheme at equal compute, and published claims against what was measured."""
