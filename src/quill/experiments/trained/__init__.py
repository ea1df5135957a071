"""Experiments that train several small models and compare their losses."""
