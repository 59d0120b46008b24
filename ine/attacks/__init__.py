"""Attacks on defences, to measure them: what an attacker with a stated budget still gets."""
