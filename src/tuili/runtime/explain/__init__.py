"""`tuili explain`: one prompt followed through a model, for people who learn. Facts, then words, then pictures."""
