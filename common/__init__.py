"""What the numbered scripts share so that their numbers are comparable."""
