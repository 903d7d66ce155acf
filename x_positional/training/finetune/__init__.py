"""Fine-tuning: a run that starts from a model's weights, trains on conversations, and may train adapters only."""
