"""Shared test machinery: fetched assets and drivers."""
