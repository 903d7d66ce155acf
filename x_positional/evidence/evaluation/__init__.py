"""What a trained model can do, as numbers: loss by context length and by position, retrieval, and small trained tasks."""
