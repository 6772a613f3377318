"""What a network is trained on: data sets, their patients, drawn slices and augmentation."""
