"""Person data: readers, splits, sampling, augmentation, captions, leakage and inspection."""
