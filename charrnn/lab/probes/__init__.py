"""Measurements that the notebooks make; nothing here draws."""
