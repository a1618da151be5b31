"""Estimates of memory and floating-point operations: does a model fit the devices?"""
