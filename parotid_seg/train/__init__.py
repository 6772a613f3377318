"""Training, with torch: data, network, augmentation, the supervised stage."""
