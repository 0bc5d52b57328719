"""What heads do, read off their weights: composition, channels, copying, succession; and attention scores."""
