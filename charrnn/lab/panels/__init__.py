"""Widgets: thin views over probes and figures."""
