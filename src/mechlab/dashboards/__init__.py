"""Dashboards: one offline page for a run, its features and its circuit."""
