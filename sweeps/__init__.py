"""Who decides what runs where: specs, search, the store, tracking, the runner."""
