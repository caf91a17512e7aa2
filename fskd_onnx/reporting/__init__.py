"""Results for people and for programs; agreement of two models."""
