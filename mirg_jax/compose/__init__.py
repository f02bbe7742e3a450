"""Multi-image grounding examples made from photos with labelled boxes."""
