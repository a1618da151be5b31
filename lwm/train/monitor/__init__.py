"""Monitoring of runs: console, log sinks, trackers and plots."""
