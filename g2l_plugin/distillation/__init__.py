"""The core: a student learns from a frozen teacher."""
