"""The figures of each study."""
