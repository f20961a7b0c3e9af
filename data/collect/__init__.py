"""Collect: asks several vision-language APIs about every film and keeps each answer. README.md tells how."""
