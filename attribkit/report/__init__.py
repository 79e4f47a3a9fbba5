"""Figures and the self-contained HTML page that ``attribkit explain`` writes."""
