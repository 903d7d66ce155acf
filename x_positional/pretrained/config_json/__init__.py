"""Keys of a published config.json to fields of ours, and back."""
