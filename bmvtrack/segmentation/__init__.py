"""Evaluation of a network's masks and saliency maps, as in the paper's Tables 3, 4 and 5."""
