"""The gallery: person crops that can be added, searched and erased."""
