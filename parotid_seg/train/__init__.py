"""Training with torch: data, network, augmentation, contrastive and supervised stages."""
