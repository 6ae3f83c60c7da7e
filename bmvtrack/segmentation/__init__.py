"""Masks and saliency maps of a network, judged as in the paper's Tables 3, 4 and 5."""
