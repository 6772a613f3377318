"""What the main process and its workers say to each other, and how it is read: typed, bounded and never pickled."""
