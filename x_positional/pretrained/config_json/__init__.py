"""Keys of a published config.json to x_positional's config fields, and back."""
