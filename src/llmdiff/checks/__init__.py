"""Validate numbers and settings of users."""
