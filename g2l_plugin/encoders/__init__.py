"""Any frozen image encoder: teacher, student or rival."""
