"""Seats on a Ray cluster. Ray decides where a seat runs and moves it when a node is lost; whose images are whose, the
catalog decides as everywhere. Used by the command line alone: featd itself knows nothing of Ray."""
