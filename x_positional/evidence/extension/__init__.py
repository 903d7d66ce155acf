"""A trained model past its trained length: methods ranked by loss, and the best one written as a model."""
