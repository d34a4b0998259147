"""The embedded default: a generated multi-centre cohort and a small trained teacher."""
